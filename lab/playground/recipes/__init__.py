"""How the shipped playground weights were trained: one module a model, run in this order by `dev.py playground train`."""
