"""Measures the playground's models, and the techniques on them, through the host's own sampling. For `dev.py playground evaluate`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch
from einops import rearrange
from torch import Tensor

from ..ifadapter.instances import Instance, Instances
from ..playground import evaluation
from ..playground.evaluation import Figure
from ..playground.scene import Scene
from . import ifadapter, ifadapter_trained, playground, sampling
from .instance_evaluation import playground_embedders

log = logging.getLogger("exemplary")

KIND = "quality"
STEPS, CFG, SAMPLER, SCHEDULER = 20, 4.5, "dpmpp_2m", "karras"


class Studio:
    """The playground's models, loaded once, and the ways to make a picture with them."""

    def __init__(self) -> None:
        self.model, self.clip, self.vae = playground.load_model(), playground.load_clip(), playground.load_vae()
        self.judge = evaluation.load_judge(playground.read_weights("judge"))

    def encode(self, text: str) -> list:
        """A CONDITIONING of a prompt, as CLIPTextEncode makes it."""
        return sampling.prompt(self.clip, text)

    def sample(
        self, model, positive: list, seed: int, steps: int = STEPS, side: int = 128, negative: list | None = None
    ) -> Tensor:
        """One picture [1, 3, side, side] in 0..1, as KSampler and VAEDecode make it."""
        negative = negative if negative is not None else self.encode("")
        return sampling.picture(
            model, self.vae, positive, negative, seed, steps=steps, cfg=CFG, side=side, sampler=SAMPLER, scheduler=SCHEDULER
        )

    def paint(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """One picture a prompt."""
        return torch.cat([self.sample(self.model, self.encode(p), s) for p, s in zip(prompts, seeds)])

    def paint_captions(self, scenes: Sequence[Scene], seeds: Sequence[int]) -> Tensor:
        """The captions of layouts, without their boxes."""
        return self.paint([s.caption for s in scenes], seeds)

    def round_trip(self, images: Tensor) -> Tensor:
        """Pictures through the VAE and back."""
        latent = self.vae.encode(rearrange(images, "b c h w -> b h w c"))
        return rearrange(self.vae.decode(latent), "b h w c -> b c h w")


def _paint_layouts(studio: Studio, adapter: ifadapter_trained.Adapter | None = None) -> evaluation.PaintLayout:
    """Pictures of layouts with an adapter or with the weight-free method, as the node applies them."""

    def paint(scenes: Sequence[Scene], seeds: Sequence[int]) -> Tensor:
        pictures = []
        for scene, seed in zip(scenes, seeds):
            instances = Instances(tuple(Instance(i.box, i.phrase) for i in scene.instances))
            model = ifadapter.apply(studio.model, studio.clip, instances, adapter=adapter)
            pictures.append(studio.sample(model, studio.encode(scene.caption), seed))
        return torch.cat(pictures)

    return paint


def figures(quick: bool) -> Iterator[dict]:
    """Every figure of the playground's models and of the techniques on them.

    `quick` takes a fifth of the pictures, too few to hold a figure to its bound, which is then left away.
    """
    studio, share = Studio(), 5 if quick else 1
    for figure in _measured(studio, share):
        record = figure.record()
        yield {k: v for k, v in record.items() if not quick or k not in ("target", "ok")}


def _measured(studio: Studio, share: int) -> Iterator[Figure]:
    yield from evaluation.autoencoder_figures(studio.round_trip, 80 // share)
    yield from evaluation.judge_figures(studio.judge, 100 // share)
    yield from evaluation.text_figures(studio.judge, studio.paint, 200 // share)
    pictures, _ = playground_embedders()
    yield from evaluation.layout_figures(
        studio.judge, _paint_layouts(studio), studio.paint_captions, _trained(studio), lambda b: pictures(list(b)), 200 // share
    )


def _trained(studio: Studio) -> dict[str, evaluation.PaintLayout]:
    """The shipped adapter and, as in the paper's ablation, the same without a kind of token (left out when sampling, not in training)."""
    if not playground.IFADAPTER.is_file():
        log.warning("%s is not there; the trained IFAdapter is not measured", playground.IFADAPTER.name)
        return {}
    adapter = ifadapter_trained.read(playground.IFADAPTER)
    appearance = adapter.config.appearance_tokens
    return {
        "IFAdapter, trained": _paint_layouts(studio, adapter),
        "IFAdapter, trained, without EoT token": _paint_layouts(studio, _with_tokens(slice(0, appearance))),
        "IFAdapter, trained, without appearance tokens": _paint_layouts(studio, _with_tokens(slice(appearance, None))),
    }


def _with_tokens(kept: slice) -> ifadapter_trained.Adapter:
    """The shipped adapter with some of the tokens of each instance alone."""
    adapter = ifadapter_trained.read(playground.IFADAPTER)
    network = adapter.patcher.model
    every = network.row_sets
    network.row_sets = lambda *parts: every(*parts)[:, :, kept]
    return adapter
