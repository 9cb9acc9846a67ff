"""Measures AM-Adapter on the playground: held-out streets painted in the look of others. For `dev.py playground evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ...py.host import folders
from ...py.host.am_adapter import apply as am_adapter
from ...py.host.am_adapter import controlnext as am_adapter_controlnext
from ...py.playground.scene import Scene
from ...py.semantic.palettes import named_palette
from ...py.semantic.retrieval import rank, summarise
from ...py.semantic.semantic_map import SemanticMap
from ..playground.recipes.am_adapter import BARE
from . import transfer
from .playground import as_images
from .setup import Studio, records

NEEDS = ["am_adapter/playground_controlnext", "am_adapter/playground_controlnext_unet", "am_adapter/playground_matcher"]
#: What suits the playground's matcher, found on streets that are not the measured ones; the weight-free modes take the node's defaults.
MATCHER_SETTINGS: dict[str, Any] = {"source": "clean", "balance": 0.5}


def map_of(scene: Scene) -> SemanticMap:
    """A drawn scene's map."""
    return SemanticMap(torch.from_numpy(scene.labels)[None], named_palette("playground"))


def way(studio: Studio, control: Any, mode: str | None, adapter: Any = None, **settings: Any) -> transfer.PaintPairs:
    """A way to paint: ControlNeXt, and an exemplar read in this mode unless it is None. The prompt says nothing about colours.

    `settings` are Apply AM-Adapter's.
    """

    @torch.inference_mode()  # as the host runs nodes
    def paint(exemplars: Sequence[Scene], targets: Sequence[Scene], seeds: Sequence[int]) -> Tensor:
        pictures, prompt = [], studio.encode(BARE)
        for exemplar, target, seed in zip(exemplars, targets, seeds):
            model = am_adapter_controlnext.apply(studio.model, control, map_of(target))
            if mode is not None:
                image = as_images([exemplar]).movedim(1, -1)
                model = am_adapter.apply(
                    model, studio.vae, image, map_of(exemplar), map_of(target), mode, adapter=adapter, cache_mb=0, **settings
                )
            pictures.append(studio.sample(model, prompt, seed))
        return torch.cat(pictures)

    return paint


def retrieved(exemplars: Sequence[Scene], targets: Sequence[Scene]) -> list[Scene]:
    """Retrieve Exemplar's first choice for each target."""
    summaries = summarise([map_of(scene) for scene in exemplars])
    return [exemplars[int(rank(map_of(scene), summaries).order[0])] for scene in targets]


def figures(quick: bool) -> Iterator[dict]:
    """Every figure of AM-Adapter. `quick` takes three pairs, too few for the bounds, which are then left out."""
    folders.register()
    studio = Studio()
    names = [f"{name.split('/')[1]}.safetensors" for name in NEEDS]
    control, adapter = am_adapter_controlnext.load(names[0], names[1]), am_adapter.load(names[2])
    ways = {
        transfer.ALONE: way(studio, control, None),
        transfer.CONCAT: way(studio, control, "concat_only"),
        transfer.CLASS: way(studio, control, "class_bias"),
        transfer.MATCHER: way(studio, control, "matcher", adapter, **MATCHER_SETTINGS),
    }
    yield from records(transfer.transfer_figures(studio.detector, ways, retrieved, 3 if quick else 100), quick)
