"""Options of Paint by Example's MODEL for its two weaknesses: it ignores what was in the hole, and attends too little to what is around it.

The published method is all options at 0. Its weights were not trained with any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...imaging.crop import CropRecord
from ...imaging.masks import mask_to_latent
from ...paint_by_example.context import adain, attend_with_reference, context_biased_attention, ring_around
from .. import grids, hooks, notices, slots
from ..crop import CELL
from ..inputs import check_connected, check_number
from ..run import SamplingRun, current_run
from ..schedule import PercentRange
from .run_check import CONCAT_KEYS

NODE = "Paint by Example Context"
KEY = "exemplary_pbe_source"  # names Exemplary's wrapper among those of other packs
BANK = "exemplary_pbe_bank"  # in the options of the source pass: the Bank to fill


@dataclass(frozen=True, eq=False)
class Source:
    """The source image: its latents [b, 4, h, w] as the VAE encodes them, and the hole [b, 1, h, w] on the latent grid."""

    latent: Tensor
    hole: Tensor

    def __deepcopy__(self, memo: dict) -> Source:
        return self

    def check(self, run: SamplingRun) -> None:
        latents = run.latent_shape[0]
        if latents % len(self.latent):
            raise grids.batch_error(NODE, "the stitch", len(self.latent), latents)

    def hole_on_grid(self, run: SamplingRun, part: grids.Rows, like: Tensor) -> Tensor:
        """[frames, h, w] on the grid of a layer, 0..1. It is resized once per run."""

        def resize() -> Tensor:
            hole = grids.part_of(self.hole, part.view).float()
            return F.interpolate(hole, size=part.grid, mode="area")[:, 0].to(like.device)

        hole = run.get_or_make((self, "hole", part.grid, part.view, like.device), resize)
        return hole[[frame % len(hole) for frame in part.frames]]


@dataclass(frozen=True, eq=False)
class Bank:
    """Keys and values of one source in each self-attention layer: {layer: (k, v)}."""

    source: Source
    layers: dict[hooks.LayerKey, tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class KeepStructure:
    """Post-CFG function: above a noise level, the prediction in the hole is replaced by the source.

    A sampler whose prediction is the source keeps its noise and only lowers its level. Below the level it therefore continues as if it had
    started from the source with that much noise (SDEdit, arXiv 2108.01073).
    """

    source: Source
    share: float

    def __deepcopy__(self, memo: dict) -> KeepStructure:
        return self

    def __call__(self, args: dict) -> Tensor:
        denoised, model = args["denoised"], args["model"]
        level = float(model.model_sampling.percent_to_sigma(self.share))
        if float(args["sigma"].flatten()[0]) <= level:
            return denoised
        shape = denoised.shape[-2:]
        latent = _resize(grids.to_like(model.process_latent_in(self.source.latent), denoised), shape, "bilinear")
        hole = _resize(grids.to_like(self.source.hole, denoised), shape, "nearest-exact")
        frames = [index % len(latent) for index in range(len(denoised))]
        return torch.where(hole[frames] > 0.5, latent[frames], denoised)


def _resize(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    return x if tuple(x.shape[-2:]) == tuple(size) else F.interpolate(x, size=size, mode=mode)


@dataclass(frozen=True, eq=False)
class SourceAttention:
    """attn1 patch for the hole: a bias towards what is known, the source's own keys and values, the statistics of the ring around it.

    All conditions of a call are treated alike, so that guidance remains the difference that the exemplar makes.
    """

    source: Source
    attention: float
    reference: float
    ring_style: float
    percent: PercentRange

    def __deepcopy__(self, memo: dict) -> SourceAttention:
        return self

    def before_run(self, run: SamplingRun) -> None:
        self.source.check(run)

    def active(self, options: dict) -> bool:
        run = current_run(options)
        if run is None or not run.inside(self.percent, options):
            return False
        bank = options.get(BANK)  # in the source pass of one node, the others do nothing
        return bool(self.attention or self.ring_style or self.reference) and (bank is None or bank.source is self.source)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict, text: Tensor) -> Tensor | None:
        if BANK in options:  # the source pass
            options[BANK].layers[hooks.layer_key(options)] = (k, v)
            return None
        run: Any = current_run(options)  # `active` has checked that there is one
        grid = grids.layer_grid(options, q.shape[1])
        chunks = grids.chunks(options, q.shape[0])
        if grid is None or chunks is None or k.shape[1] < q.shape[1] or k.shape[0] != q.shape[0]:
            run.warn_once(f"{NODE}: another node rearranges the tokens of an attention layer; it has no effect there.")
            return None
        change = None
        for chunk, first, last, _ in chunks:
            view = grids.chunk_view(run, options, chunk)
            if view is None:
                run.warn_once(
                    f"{NODE}: the model is sampled on a crop of the image at an unknown position; it has no effect there."
                )
                continue
            part = grids.Rows(slice(first, last), grid, view, grids.frame_indices(options, last - first))
            change = torch.zeros_like(text) if change is None else change
            change[part.rows] = self._change(run, part, q[part.rows], k[part.rows], v[part.rows], options, text[part.rows])
        return change

    def _change(self, run: SamplingRun, part: grids.Rows, q: Tensor, k: Tensor, v: Tensor, options: dict, text: Tensor) -> Tensor:
        hole = self.source.hole_on_grid(run, part, q)
        flat = hole.flatten(1)
        attend = slots.attention_of_own_rows(options)
        out = context_biased_attention(q, k, v, options["n_heads"], flat, self.attention, attend) if self.attention else text
        pair = _bank(run, self.source).get(hooks.layer_key(options)) if self.reference and part.view == grids.WHOLE else None
        if pair is not None and pair[0].shape[1:] == k.shape[1:]:
            rows = [frame % len(pair[0]) for frame in part.frames]
            out = torch.lerp(out, attend_with_reference(q, k, v, pair[0][rows], pair[1][rows], attend), min(self.reference, 1.0))
        if self.ring_style:
            out = torch.lerp(out, adain(out, flat, ring_around(hole).flatten(1)).to(out.dtype), self.ring_style)
        return grids.to_like(flat[..., None], text) * (out - text)


@dataclass(frozen=True, eq=False)
class SourceReference:
    """DIFFUSION_MODEL wrapper: before each call the same UNet runs on the whole source at the same noise, and its keys and values are kept.

    The pass is conditioned on the run's negative, however the host divides conditions among calls; on its positive if there is no negative.
    The source is concatenated unmasked. No ControlNet and no wrapper of another pack takes part.
    """

    source: Source
    percent: PercentRange

    def __deepcopy__(self, memo: dict) -> SourceReference:
        return self

    def __call__(self, executor: Any, x: Tensor, timesteps: Tensor, context: Tensor, *args: Any, **kwargs: Any) -> Any:
        options = kwargs["transformer_options"] if "transformer_options" in kwargs else args[2]
        run = current_run(options)
        if run is None or BANK in options or not run.inside(self.percent, options):
            return executor(x, timesteps, context, *args, **kwargs)
        bank = _bank(run, self.source)
        bank.clear()
        noisy = self._add_noise(run, options, x)
        negative, uuid = _negative(run, options, context)
        inner = {
            **options,
            BANK: Bank(self.source, bank),
            "cond_or_uncond": [1],
            "uuids": [uuid],
            "wrappers": {},
        }
        executor.class_obj(
            noisy,
            timesteps[:1].expand(len(noisy)),
            negative.expand(len(noisy), *negative.shape[1:]),
            None,
            None,
            inner,
        )
        return executor(x, timesteps, context, *args, **kwargs)

    def _add_noise(self, run: SamplingRun, options: dict, x: Tensor) -> Tensor:
        model = run.patcher.model
        sampling = run.patcher.get_model_object("model_sampling")

        def make() -> tuple[Tensor, Tensor]:
            latent = grids.to_like(model.process_latent_in(self.source.latent), x).float()
            # One noise for all images and steps: an image must not depend on those that are sampled beside it.
            noise = torch.randn(latent.shape[1:], generator=torch.Generator().manual_seed(0))
            return latent, grids.to_like(noise, latent).expand_as(latent)

        latent, noise = run.get_or_make((self, "source", x.device), make)
        sigma = options["sigmas"][:1].float()
        noisy = sampling.calculate_input(sigma, sampling.noise_scaling(sigma.view(-1, 1, 1, 1), noise, latent, False))
        return torch.cat([noisy, latent, torch.ones_like(latent[:, :1])], dim=1).to(x.dtype)


def _bank(run: SamplingRun, source: Source) -> dict[hooks.LayerKey, tuple[Tensor, Tensor]]:
    """The keys and values of one node's source in this run."""
    return run.get_or_make((source, "bank"), dict)


def _negative(run: SamplingRun, options: dict, context: Tensor) -> tuple[Tensor, Any]:
    """The context [1, l, c] of the run's negative that is active at this noise level, and its uuid."""
    conds = getattr(run.guider, "conds", None) or {}
    sigma = run.sigma(options)
    for condition in conds.get("negative") or conds.get("positive") or ():
        cross = (condition.get("model_conds") or {}).get("c_crossattn")
        start, end = condition.get("timestep_start"), condition.get("timestep_end")
        if cross is not None and (start is None or sigma <= start) and (end is None or sigma >= end):
            return grids.to_like(cross.cond[:1], context), condition.get("uuid")
    return context[:1], None


def apply(
    model: Any,
    vae: Any,
    record: CropRecord,
    *,
    structure: float = 0.0,
    context_attention: float = 0.0,
    source_reference: float = 0.0,
    ring_style: float = 0.0,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
) -> Any:
    """A MODEL that uses the source image. The given one is not changed; with everything at 0 it is returned itself.

    Args:
        structure: the share of the sampling, 0..1, in which the hole follows the source.
        context_attention: added to the attention logits from the hole to what is around it, 0..5.
        source_reference, ring_style: 0..1.

    Raises:
        ValueError: names the input, the value and the remedy.
    """
    percent = PercentRange.checked(start_percent, end_percent, NODE)
    for name, value, most in (
        ("structure", structure, 1.0),
        ("context_attention", context_attention, 5.0),
        ("source_reference", source_reference, 1.0),
        ("ring_style", ring_style, 1.0),
    ):
        check_number(value, NODE, name, 0.0, most)
    changes_attention = bool(context_attention or source_reference or ring_style) and not percent.empty
    if not (changes_attention or structure):
        return model
    if tuple(getattr(model.model, "concat_keys", ())) != CONCAT_KEYS:
        raise ValueError(
            f"{NODE}: model ({hooks.model_name(model)}) is not Paint by Example's. Connect the MODEL of Load Paint by Example. "
            "For fill and edit models use Prepare and Stitch without this node."
        )
    check_connected(vae, NODE, "VAE", "Connect the one that Prepare uses.")
    keys = hooks.text_layers(model, NODE)
    grid = record.size[1] // CELL, record.size[0] // CELL
    source = Source(vae.encode(record.windows().movedim(1, -1)), mask_to_latent(record.holes(), grid, "cover"))
    attention = SourceAttention(source, context_attention, source_reference, ring_style, percent)
    patched = hooks.install(model, {"attn1": attention}, keys)
    if structure:
        if structure == 1.0:
            notices.warn_user(f"{NODE}: at structure 1 the hole is the source to the end; the exemplar has no effect.")
        patched.set_model_sampler_post_cfg_function(KeepStructure(source, structure))
    if source_reference and changes_attention:
        patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, SourceReference(source, percent))
    return patched
