"""Does growing pay? Runs that grow, read against runs from scratch of many lengths: see docs/benchmarks/growth.md."""
