"""Techniques as the contract's tests apply them, by the nodes' own calls."""

from __future__ import annotations

import types

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
    images = tiny.picture(), tiny.street_map(96, 128), tiny.street_map(ground=0.7)
    return am_adapter.apply(model, tiny.TinyVAE(), *images, **more)


def tensors_in(*roots) -> int:
    """How many tensors can be reached from these MODELs' own state: options, patches, wrappers and callbacks; not the shared base model."""
    pending, seen, count = [vars(root) for root in roots], set(), 0
    shared = {id(root.model) for root in roots}
    kept = []  # an id is unique only while its object lives
    while pending:
        thing = pending.pop()
        if (
            id(thing) in seen
            or id(thing) in shared
            or isinstance(thing, (type, types.ModuleType, types.FunctionType, str, bytes))
        ):
            continue
        seen.add(id(thing))
        kept.append(thing)
        if isinstance(thing, torch.Tensor):
            count += 1
        elif isinstance(thing, dict):
            pending += [*thing.keys(), *thing.values()]
        elif isinstance(thing, (list, tuple, set, frozenset)):
            pending += thing
        elif hasattr(thing, "__dict__"):
            pending.append(vars(thing))
    return count
