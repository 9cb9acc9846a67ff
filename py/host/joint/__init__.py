"""Techniques on transformer (DiT) bases: one APPLY_MODEL wrapper and one attention override for all of them (`py/joint`).

families.py        one row per model class: patch size, positions of text, padding, references
contribution.py    what a technique hands in
texts.py           CONDITIONING -> the text tokens that the model receives
apply.py           installs contributions on a MODEL; the wrapper around a model call
attention.py       the override of one model call
recording.py       keys and values of another image, layer by layer
"""
