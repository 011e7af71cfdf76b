"""Memory: how much is in use, when it runs out, and the largest batch that fits."""
