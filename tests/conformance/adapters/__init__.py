"""One file a technique; see `tests/conformance/registry.py` for what it holds."""
