"""Measures IFAdapter on the playground: held-out layouts of objects. For `dev.py playground evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...py.host import playground
from ...py.host.ifadapter import apply as ifadapter
from ...py.host.ifadapter import trained
from ...py.ifadapter.instances import Instance, Instances
from ...py.playground.scene import Scene
from . import playground as measures
from .instances import playground_embedders
from .setup import Studio, records

NEEDS = ["ifadapter/playground_ifadapter"]


def _paint_layouts(studio: Studio, adapter: trained.LoadedAdapter | None = None) -> measures.PaintLayout:
    """Images of layouts with an adapter or with the weight-free method, as the node applies them."""

    def paint(scenes: Sequence[Scene], seeds: Sequence[int]) -> Tensor:
        pictures = []
        for scene, seed in zip(scenes, seeds):
            instances = Instances(tuple(Instance(i.box, i.phrase) for i in scene.instances))
            model = ifadapter.apply(studio.model, studio.clip, instances, adapter=adapter)
            pictures.append(studio.sample(model, studio.encode(scene.caption), seed))
        return torch.cat(pictures)

    return paint


def _trained(studio: Studio) -> dict[str, measures.PaintLayout]:
    """The shipped adapter and, as in the paper's ablation, the same without a kind of token (left out when sampling, not in training)."""
    adapter = trained.read(playground.IFADAPTER)
    appearance = adapter.config.appearance_tokens
    return {
        "IFAdapter, trained": _paint_layouts(studio, adapter),
        "IFAdapter, trained, without EoT token": _paint_layouts(studio, _with_tokens(slice(0, appearance))),
        "IFAdapter, trained, without appearance tokens": _paint_layouts(studio, _with_tokens(slice(appearance, None))),
    }


def _with_tokens(kept: slice) -> trained.LoadedAdapter:
    """The shipped adapter with some of the tokens of each instance alone."""
    adapter = trained.read(playground.IFADAPTER)
    network = adapter.patcher.model
    every = network.conditional_and_unconditional_tokens
    network.conditional_and_unconditional_tokens = lambda *parts: every(*parts)[:, :, kept]
    return adapter


def figures(quick: bool) -> Iterator[dict]:
    """Instance success and distance to drawn scenes: trained, weight-free, text alone. `quick` takes a tenth, and no ablations."""
    studio = Studio()
    pictures, _ = playground_embedders()
    found = measures.layout_figures(
        studio.detector,
        _paint_layouts(studio),
        studio.paint_captions,
        dict(list(_trained(studio).items())[: 1 if quick else None]),
        lambda batch: pictures(list(batch)),
        20 if quick else 200,
    )
    yield from records(found, quick)
