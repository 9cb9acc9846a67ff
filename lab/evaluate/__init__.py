"""Measurements, one module per technique."""
