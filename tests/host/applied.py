"""Techniques as the contract's tests apply them, by the nodes' own calls."""

from __future__ import annotations

import tiny
import torch
from pack.py.host.am_adapter import apply as am_adapter
from pack.py.host.ca2sis import attention as ca2sis_attention
from pack.py.semantic.palettes import named_palette
from pack.py.semantic.semantic_map import SemanticMap

SKY, TREE = 1, 7


def classes(model, **settings):
    """A sky above trees, each with a text of its own; `settings` as in `ca2sis_attention.Settings`."""
    labels = torch.full((1, 24, 32), TREE, dtype=torch.uint8)
    labels[:, :12] = SKY
    prompts = None
    for name, text in (("sky", "a red evening sky"), ("tree", "a tree in a storm")):
        prompts = ca2sis_attention.class_prompt(name, tiny.conditioning(model, text), prompts=prompts)
    chosen = ca2sis_attention.Settings(**{"isolate": 0.5, **settings})
    return ca2sis_attention.apply(model, SemanticMap(labels, named_palette("playground")), prompts, settings=chosen)


def exemplar(model, **more):
    """The look of one street on the map of another."""
    pictures = tiny.picture(), tiny.street_map(96, 128), tiny.street_map(ground=0.7)
    return am_adapter.apply(model, tiny.TinyVAE(), *pictures, **more)
