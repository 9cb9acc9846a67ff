"""Trainers, one module per technique."""
