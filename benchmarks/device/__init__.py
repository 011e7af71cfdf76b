"""Parts of `benchmarks.gpu`: what is measured on a device, within a budget of time, and what the report says of it."""
