"""The method's two weaknesses, as options of a MODEL: the hole forgets the source's structure, and hears too little of what is around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...imaging import crop as stitching
from ...imaging.crop import Cut
from ...paint_by_example.context import biased, restyled, ring_of, with_reference
from .. import grids, hooks, notices, slots
from ..run import SamplingRun, current_run
from ..schedule import PercentRange
from .loader import CONCAT_KEYS

NODE = "Paint by Example Context"
KEY = "exemplary_pbe_source"  # names our wrapper among those of other packs
BANK = "exemplary_pbe_bank"  # in the options of the extra pass: where keys and values go
CELL = 8


@dataclass(frozen=True, eq=False)
class Source:
    """What the hooks know of the source: its latents [b, 4, h, w] as the VAE gives them, the hole [b, 1, h, w] on their cells."""

    latent: Tensor
    hole: Tensor

    def __deepcopy__(self, memo: dict) -> Source:
        return self

    def check(self, run: SamplingRun) -> None:
        latents = run.latent_shape[0]
        if latents % len(self.latent):
            raise grids.batch_error(NODE, "the stitch", len(self.latent), latents)

    def hole_on(self, run: SamplingRun, grid: grids.Grid, view: grids.View, frames: tuple[int, ...], like: Tensor) -> Tensor:
        """[frames, h, w] of one grid, 0..1, made once per run."""

        def make() -> Tensor:
            h, w = self.hole.shape[-2:]
            x0, y0, x1, y1 = view
            rows, columns = (
                slice(int(y0 * h), max(int(y0 * h) + 1, round(y1 * h))),
                slice(int(x0 * w), max(int(x0 * w) + 1, round(x1 * w))),
            )
            return F.interpolate(self.hole[..., rows, columns].float(), size=grid, mode="area")[:, 0].to(like.device)

        hole = run.get_or_make((self, "hole", grid, view, like.device), make)
        return hole[[frame % len(hole) for frame in frames]]


@dataclass(frozen=True, eq=False)
class KeepStructure:
    """Post-CFG function: in the hole, while the noise is above a level, the picture to come is the source.

    A sampler whose prediction is the source keeps its noise and only lowers its level. When it is let go it is therefore where it would be
    had it started from the source with that much noise (SDEdit, arXiv 2108.01073), but with every node around as it was.
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
        latent = _resized(grids.to_like(model.process_latent_in(self.source.latent), denoised), shape, "bilinear")
        hole = _resized(grids.to_like(self.source.hole, denoised), shape, "nearest-exact")
        frames = [number % len(latent) for number in range(len(denoised))]
        return torch.where(hole[frames] > 0.5, latent[frames], denoised)


def _resized(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    return x if tuple(x.shape[-2:]) == tuple(size) else F.interpolate(x, size=size, mode=mode)


@dataclass(frozen=True, eq=False)
class HearSource:
    """attn1 technique: a bias from the hole to what is known, the source's own keys and values, the ring's statistics.

    All conditions of a call are treated alike, so that guidance still is the difference that the exemplar makes.
    """

    source: Source
    attention: float
    reference: float
    ring_style: float
    percent: PercentRange

    def __deepcopy__(self, memo: dict) -> HearSource:
        return self

    def before_run(self, run: SamplingRun) -> None:
        self.source.check(run)

    def active(self, options: dict) -> bool:
        run = current_run(options)
        if run is None or not run.inside(self.percent, options):
            return False
        return bool(self.attention or self.ring_style or self.reference)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict, text: Tensor) -> Tensor | None:
        if BANK in options:  # the source itself is being read
            options[BANK].setdefault(hooks.layer_key(options), []).append((k, v))
            return None
        run: Any = current_run(options)  # there is one, `active` has asked
        grid = grids.layer_grid(options, q.shape[1])
        chunks = grids.chunks(options, q.shape[0])
        if grid is None or chunks is None or k.shape[1] < q.shape[1]:
            run.warn_once(f"{NODE}: another node rearranges the places of an attention layer; the source is not heard there.")
            return None
        change = None
        for chunk, first, last, _ in chunks:
            view = grids.chunk_view(run, options, chunk)
            if view is None:
                run.warn_once(
                    f"{NODE}: the model is given a part of the picture, whose place is unknown; the source is not heard there."
                )
                continue
            rows, frames = slice(first, last), grids.frame_indices(options, last - first)
            part = self._change(run, grid, view, frames, q[rows], k[rows], v[rows], options, text[rows])
            change = torch.zeros_like(text) if change is None else change
            change[rows] = part
        return change

    def _change(
        self,
        run: SamplingRun,
        grid: grids.Grid,
        view: grids.View,
        frames: tuple[int, ...],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        options: dict,
        text: Tensor,
    ) -> Tensor:
        hole = self.source.hole_on(run, grid, view, frames, q)
        flat = hole.flatten(1)
        attend = slots.attention_of_own_rows(options)
        out = biased(q, k, v, options["n_heads"], flat, self.attention, attend) if self.attention else text
        bank = run.get_or_make("pbe bank", dict).get(hooks.layer_key(options)) if self.reference and view == grids.WHOLE else None
        if bank is not None and bank[0].shape[1:] == k.shape[1:]:
            rows = [frame % len(bank[0]) for frame in frames]
            out = torch.lerp(out, with_reference(q, k, v, bank[0][rows], bank[1][rows], attend), min(self.reference, 1.0))
        if self.ring_style:
            out = torch.lerp(out, restyled(out, flat, ring_of(hole).flatten(1)).to(out.dtype), self.ring_style)
        return grids.to_like(flat[..., None], text) * (out - text)


@dataclass(frozen=True, eq=False)
class ReadSource:
    """DIFFUSION_MODEL wrapper: before each call the same UNet reads the whole source at the same noise, and its keys and values are kept.

    The pass has the negative condition's first row as context, the source unmasked beside it, and no control.
    """

    source: Source
    percent: PercentRange

    def __deepcopy__(self, memo: dict) -> ReadSource:
        return self

    def __call__(self, executor: Any, x: Tensor, timesteps: Tensor, context: Tensor, *args: Any, **kwargs: Any) -> Any:
        options = kwargs["transformer_options"] if "transformer_options" in kwargs else args[2]
        run = current_run(options)
        if run is None or BANK in options or not run.inside(self.percent, options):
            return executor(x, timesteps, context, *args, **kwargs)
        bank: dict = {}
        kinds = options.get("cond_or_uncond") or [0]
        size = len(x) // len(kinds)
        row = (kinds.index(1) if 1 in kinds else 0) * size
        read = self._noisy(run, options, x)
        rows = len(read)
        inner = {**options, BANK: bank, "cond_or_uncond": [1], "uuids": []}
        inner["sigmas"] = options["sigmas"]
        executor.class_obj(
            read, timesteps[:1].expand(rows), context[row : row + 1].expand(rows, *context.shape[1:]), None, None, inner
        )
        kept = run.get_or_make("pbe bank", dict)
        kept.clear()
        kept.update({key: pairs[-1] for key, pairs in bank.items()})
        return executor(x, timesteps, context, *args, **kwargs)

    def _noisy(self, run: SamplingRun, options: dict, x: Tensor) -> Tensor:
        model = run.patcher.model
        sampling = run.patcher.get_model_object("model_sampling")

        def make() -> tuple[Tensor, Tensor]:
            latent = grids.to_like(model.process_latent_in(self.source.latent), x).float()
            # One noise for all pictures and every step: a picture must not depend on those that are sampled beside it.
            noise = torch.randn(latent.shape[1:], generator=torch.Generator().manual_seed(0))
            return latent, grids.to_like(noise, latent).expand_as(latent)

        latent, noise = run.get_or_make((self, "source", x.device), make)
        sigma = options["sigmas"][:1].float()
        noisy = sampling.calculate_input(sigma, sampling.noise_scaling(sigma.view(-1, 1, 1, 1), noise, latent, False))
        return torch.cat([noisy, latent, torch.ones_like(latent[:, :1])], dim=1).to(x.dtype)


def apply(
    model: Any,
    vae: Any,
    cut: Cut,
    *,
    structure: float = 0.0,
    context_attention: float = 0.0,
    source_reference: float = 0.0,
    ring_style: float = 0.0,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
) -> Any:
    """A MODEL that knows the source. The given one is not changed; with everything at 0 it is returned as it is.

    Args:
        structure: the share of the sampling, 0..1, in which the hole follows the source.
        context_attention: added to the logits from the hole to what is known, 0..5.
        source_reference, ring_style: 0..1.

    Raises:
        ValueError: naming the input, the value and the remedy.
    """
    percent = PercentRange.checked(start_percent, end_percent, NODE)
    for name, value, most in (
        ("structure", structure, 1.0),
        ("context_attention", context_attention, 5.0),
        ("source_reference", source_reference, 1.0),
        ("ring_style", ring_style, 1.0),
    ):
        if not 0.0 <= value <= most:  # also refuses NaN
            raise ValueError(f"{NODE}: {name} is {value}; it must be a number from 0 to {most:g}.")
    hears = bool(context_attention or source_reference or ring_style) and not percent.empty
    if not (hears or structure):
        return model
    if tuple(getattr(model.model, "concat_keys", ())) != CONCAT_KEYS:
        raise ValueError(
            f"{NODE}: this MODEL ({hooks.model_name(model)}) is not Paint by Example's. Connect the one of Load Paint by Example. "
            "For fill and edit models use Prepare and Stitch without this node."
        )
    if vae is None:
        raise ValueError(f"{NODE}: the VAE input is empty. Connect the one that Prepare uses.")
    keys = hooks.text_layers(model, NODE)
    grid = cut.size[1] // CELL, cut.size[0] // CELL
    source = Source(vae.encode(cut.windows().movedim(1, -1)), stitching.cells(cut.holes(), grid, "cover"))
    patched = hooks.install(model, {"attn1": HearSource(source, context_attention, source_reference, ring_style, percent)}, keys)
    if structure:
        if structure == 1.0:
            notices.warn_user(f"{NODE}: at structure 1 the hole is the source itself to the end; the exemplar has no effect.")
        patched.set_model_sampler_post_cfg_function(KeepStructure(source, structure))
    if source_reference and hears:
        patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, ReadSource(source, percent))
    return patched
