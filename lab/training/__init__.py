"""The training loop that every trainer of the pack shares, on `accelerate`."""
