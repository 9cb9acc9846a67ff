"""AM-Adapter's room: exemplars and semantic maps -> the self-attention of the host's MODEL (`py/am_adapter/attention.py`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import comfy.utils
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...am_adapter.agreement import CORRECTED, UPSTREAM, Agreement, Behaviour, agreement
from ...am_adapter.attention import Attend, Exemplar, Match, Settings, augmented_attention, match, matching_grid
from ...am_adapter.checkpoint import read_matcher
from ...am_adapter.model import Matcher, MatcherLayout
from ...semantic.palettes import VOID
from .. import folders, grids, hooks, networks, notices, slots
from ..run import SamplingRun, current_run
from ..schedule import PercentRange
from ..slots import as_conditional_rows
from . import cache as am_adapter_cache
from . import exemplar as am_adapter_exemplar
from . import transformer
from .cache import Features
from .exemplar import Pictures
from .inputs import Target, exemplar_pictures, target_of

LOAD = "Load AM-Adapter"
NODE = "Apply AM-Adapter"
LINK = "https://cvlab-kaist.github.io/AM-Adapter (not published yet), or train one"
KEY = "exemplary_am_adapter"
OBSERVER = "exemplary_am_observer"  # in the options of a call that is watched

AUTOMATIC = "automatic"
#: Which parts of the network read exemplars: the host's name -> the matcher's name.
PARTS = {"input": "down", "middle": "mid", "output": "up"}
PART_CHOICES = {
    "all": ("down", "mid", "up"),
    "up": ("up",),
    "middle and up": ("mid", "up"),
    "down": ("down",),
    "down and middle": ("down", "mid"),
}
BEHAVIOURS: dict[str, Behaviour | None] = {"as the file says": None, "upstream": UPSTREAM, "corrected": CORRECTED}


@dataclass(frozen=True, eq=False)
class LoadedMatcher:
    """A matcher's network and how it wants to be used."""

    patcher: Any  # ModelPatcher
    layout: MatcherLayout
    behaviour: Behaviour
    file: str


def load(file: str, behaviour: str = "as the file says") -> LoadedMatcher:
    """Read a matcher from the model folder am_adapter. Raises ValueError naming the file and what it is not."""
    path = folders.path("am_adapter", file, LOAD, LINK)
    try:
        weights, metadata = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
        found = read_matcher(weights, metadata)
    except ValueError as error:
        raise ValueError(f"{LOAD}: {file!r}: {error}") from error
    except Exception as error:
        raise ValueError(f"{LOAD}: {file!r} cannot be read ({error}). Get it again from {LINK}.") from error
    return LoadedMatcher(
        networks.load(Matcher, found.weights, found.layout), found.layout, BEHAVIOURS[behaviour] or found.behaviour, file
    )


@dataclass(frozen=True, eq=False)
class Choice:
    """What a user chose on one node, besides the pictures."""

    settings: Settings
    percent: PercentRange
    parts: tuple[str, ...]
    levels: tuple[int, ...]  # how many times smaller than the latent the layers are; () is all
    match_void: bool
    matcher: LoadedMatcher | None = None

    @property
    def behaviour(self) -> Behaviour:
        return CORRECTED if self.matcher is None else self.matcher.behaviour

    def reads_in(self, options: dict, grid: grids.Grid) -> bool:
        """Does the calling layer read exemplars?"""
        if PARTS.get(options["block"][0]) not in self.parts:
            return False
        height = options["original_shape"][-2] if "original_shape" in options else grid[0]
        return not self.levels or 2 ** round(math.log2(max(1.0, height / grid[0]))) in self.levels


@dataclass(frozen=True, eq=False)
class Application:
    """One Apply node: exemplars, the map they are read for, and how."""

    pictures: Pictures
    target: Target
    choice: Choice

    def __deepcopy__(self, memo: dict) -> Application:
        return self

    def check(self, run: SamplingRun) -> None:
        latents = run.latent_shape[0]
        for name, batch in (("target_map", self.target.labels), ("mask", self.target.where)):
            if batch is not None and batch.shape[0] not in (1, latents):
                raise grids.batch_error(NODE, name, batch.shape[0], latents)
        if self.choice.settings.mode == "matcher" and self.choice.behaviour.flat:
            sizes = (tuple(run.latent_shape[-2:]), tuple(self.pictures.latents.shape[-2:]))
            if sizes != ((64, 64), (64, 64)):
                shown = " and ".join(f"{8 * w}x{8 * h}" for h, w in sizes)
                raise ValueError(
                    f"{NODE}: this adapter uses the published behaviour, which knows pictures of 512x512 only; target and exemplar are "
                    f"{shown}. Use 512x512, or choose the behaviour corrected in {LOAD}."
                )

    def exemplars(self, run: SamplingRun, options: dict, call: _LayerCall, features: Features) -> list[tuple[Exemplar, Origin]]:
        """What each exemplar is to the calling layer, for the latents of one chunk; [] if the layer does not read them."""
        found = features.layers.get(hooks.layer_key(options))
        if found is None or not self.choice.reads_in(options, call.grid):
            return []
        keys, values, grid = found
        settings = self.choice.settings
        weight = 1.0 / len(self.pictures)
        frames = list(call.frames)
        where = self.target.where_on(run, call.grid, call.view)
        if where is not None:
            where = (where if where.shape[0] == 1 else where[frames]).to(call.q.device)
        part = PARTS[options["block"][0]]
        read = []
        for place in range(len(self.pictures)):
            k, v = (t[place : place + 1].to(call.q) for t in (keys, values))
            same = self._agreement(run, place, call, call.grid, grid, CORRECTED).select(frames)
            matched = self._match(run, place, call, k, grid, part, frames) if settings.mode == "matcher" else None
            read.append((Exemplar(k, v, same, matched, weight, settings, where), Origin(self, place, grid)))
        return read

    def _agreement(
        self, run: SamplingRun, place: int, call: _LayerCall, grid: grids.Grid, exemplar_grid: grids.Grid, behaviour: Behaviour
    ) -> Agreement:
        """C of target and exemplar on two grids, made once per run."""

        def make() -> Agreement:
            exemplar = self.pictures.labels[place if len(self.pictures.labels) > 1 else 0][None]
            target = grids.part_of(self.target.labels, call.view)
            void = None if self.choice.match_void else VOID
            return agreement(target, exemplar, grid, exemplar_grid, behaviour=behaviour, void=void).to(
                call.q.device, call.q.dtype
            )

        key = (self, "agreement", place, call.view, grid, exemplar_grid, behaviour, call.q.device, call.q.dtype)
        return run.get_or_make(key, make)

    def _match(
        self, run: SamplingRun, place: int, call: _LayerCall, keys: Tensor, grid: grids.Grid, part: str, frames: list[int]
    ) -> Match:
        loaded: Any = self.choice.matcher
        behaviour = loaded.behaviour
        small, small_exemplar = (matching_grid(g, behaviour) for g in (call.grid, grid))
        same = self._agreement(run, place, call, small, small_exemplar, behaviour).select(frames)
        encoder = loaded.patcher.model.encoder(part, behaviour.part_encoder)
        return match(encoder, call.q, keys, call.heads, same, call.grid, grid, behaviour=behaviour)


@dataclass(frozen=True)
class Origin:
    """Whose tokens a layer reads: picture number `place` of a node, on this grid."""

    application: Application
    place: int
    grid: grids.Grid


@dataclass(frozen=True, eq=False)
class _LayerCall:
    """One chunk of one call of one layer."""

    q: Tensor
    heads: int
    grid: grids.Grid
    view: grids.View
    frames: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ReadExemplars:
    """attn1: the places of the target read exemplars as well. One for all Apply nodes of a chain, so that one softmax weighs them all."""

    applications: tuple[Application, ...]

    def __deepcopy__(self, memo: dict) -> ReadExemplars:
        return self

    def before_run(self, run: SamplingRun) -> None:
        am_adapter_cache.store().begin_run()
        for application in self.applications:
            application.check(run)

    def active(self, options: dict) -> bool:
        run = current_run(options)
        return run is not None and bool(run.get_or_make((self, "read"), dict))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict, text: Tensor) -> Tensor | None:
        run: Any = current_run(options)  # there is one, `active` has asked
        grid = grids.layer_grid(options, q.shape[1])
        chunks = grids.conditional_chunks(options, q.shape[0])
        if grid is None or chunks is None:
            run.warn_once(f"{NODE}: another node rearranges the places of an attention layer; exemplars are not read there.")
            return None
        change = None
        for chunk, first, last in chunks:
            view = grids.chunk_view(run, options, chunk)
            if view is None:
                run.warn_once(
                    f"{NODE}: the model is given a part of the picture (a tiled sampler?), whose place is unknown; exemplars are not read."
                )
                continue
            frames = grids.frame_indices(options, last - first)
            call = _LayerCall(q[first:last], options["n_heads"], grid, view, frames)
            read = [
                pair
                for application, features in run.get_or_make((self, "read"), dict).get(chunk, ())
                for pair in application.exemplars(run, options, call, features)
            ]
            if read:
                change = torch.zeros_like(text) if change is None else change
                rows, attend = slice(first, last), _attend(options)
                if OBSERVER in options and chunk == chunks[0][0]:
                    attend = options[OBSERVER].watching(attend, grid, tuple(origin for _, origin in read))
                exemplars = [exemplar for exemplar, _ in read]
                found = augmented_attention(q[rows], k[rows], v[rows], call.heads, exemplars, attend=attend)
                change[rows] = found - text[rows]
        return change

    def read(self, run: SamplingRun, unet: Any, arguments: dict) -> None:
        """Before a call of the UNet: what its layers will read, {chunk: [(application, features)]}."""
        options, read = arguments["transformer_options"], run.get_or_make((self, "read"), dict)
        done: dict[Any, Features] = {}
        for application in self.applications:
            if not run.inside(application.choice.percent, options):
                continue
            pictures = application.pictures
            readings = am_adapter_exemplar.readings(run, unet, arguments, pictures.prompt, pictures.token)
            for chunk, reading in readings.items():
                # Chunks with one prompt see the same; without a key (scheduled LoRAs) each chunk reads for itself.
                name = (pictures, reading.key if reading.key is not None else chunk)
                if name not in done:
                    done[name] = am_adapter_exemplar.read(reading, pictures, run.sigma(options))
                read.setdefault(chunk, []).append((application, done[name]))


def read_exemplars(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """DIFFUSION_MODEL wrapper: read the exemplars, then run the UNet."""
    arguments = {**dict(zip(("x", "timesteps", "context", "y", "control", "transformer_options"), args)), **kwargs}
    options = arguments["transformer_options"]
    run: Any = current_run(options)
    ours = [t for t in slots.techniques(options) if isinstance(t, ReadExemplars)] if run is not None else []
    try:
        for technique in ours:
            technique.read(run, executor.class_obj, arguments)
        return executor(*args, **kwargs)
    finally:
        for technique in ours:
            run.get_or_make((technique, "read"), dict).clear()


def _attend(options: dict) -> Attend:
    """The host's attention with a mask, for rows of our own making."""
    ours = as_conditional_rows(options)

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return optimized_attention(
            q,
            k,
            v,
            q.shape[1],
            mask=mask,
            attn_precision=options.get("attn_precision"),
            skip_reshape=True,
            skip_output_reshape=True,
            transformer_options=ours,
        )

    return attend


def apply(
    model: Any,
    vae: Any,
    exemplar: Tensor,
    exemplar_map: Any,
    target_map: Any,
    mode: str = AUTOMATIC,
    strength: float = 1.0,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    source: str = "noise",
    *,
    class_strength: float = 2.0,
    balance: float = 0.0,
    parts: str = "all",
    levels: str = "",
    match_void: bool = False,
    cache_mb: int = 1024,
    adapter: LoadedMatcher | None = None,
    prompt: Any = None,
    mask: Tensor | None = None,
) -> Any:
    """A MODEL that paints the target map in the exemplars' look. The given one is not changed; with nothing to do it is returned as is.

    Raises:
        ValueError: before anything is sampled, naming what was found and what to do.
    """
    percent = PercentRange.checked(start_percent, end_percent, NODE)
    for name, value, most in (("strength", strength, 10.0), ("class_strength", class_strength, 50.0), ("balance", balance, 1.0)):
        if not 0.0 <= value <= most:  # also refuses NaN
            raise ValueError(f"{NODE}: {name} is {value}; it must be a number from 0 to {most:g}.")
    settings = Settings(_mode(mode, adapter), strength, class_strength, balance)
    is_unet = hooks.has_unet(model)
    if not is_unet:
        transformer.check(model, NODE, adapter, settings.mode)
    keys = hooks.text_layers(model, NODE) if is_unet else []
    if is_unet:
        _check_model(model, adapter, settings.mode)
    chosen_levels = _levels(levels)
    target, alphabet = target_of(target_map, mask, NODE), target_map
    if strength == 0.0 or percent.empty:
        return model
    pictures = exemplar_pictures(model, vae, exemplar, exemplar_map, alphabet, prompt, source, cache_mb << 20, NODE)
    if not is_unet:
        is_all = parts == "all" and not chosen_levels
        return transformer.apply(model, pictures, target, settings, percent, match_void, is_all, NODE)
    matcher = adapter if settings.mode == "matcher" else None
    choice = Choice(settings, percent, PART_CHOICES[parts], chosen_levels, match_void, matcher)
    return _installed(model, Application(pictures, target, choice), keys)


def _installed(model: Any, application: Application, keys: list[hooks.LayerKey]) -> Any:
    options = model.model_options["transformer_options"]
    earlier = next((t for t in slots.techniques(options) if isinstance(t, ReadExemplars)), None)
    technique = ReadExemplars((*(() if earlier is None else earlier.applications), application))
    clone = hooks.install(model, {"attn1": technique}, keys, instead_of=earlier)
    if not clone.get_wrappers(WrappersMP.DIFFUSION_MODEL, KEY):
        clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, read_exemplars)
    if application.choice.matcher is not None:
        networks.serve(clone, KEY, [application.choice.matcher.patcher])
    am_adapter_cache.attend_to_memory(clone)
    return clone


def _mode(mode: str, adapter: LoadedMatcher | None) -> str:
    if mode == AUTOMATIC:
        return "class_bias" if adapter is None else "matcher"
    if mode == "matcher" and adapter is None:
        raise ValueError(f"{NODE}: the mode matcher needs weights. Connect {LOAD} to adapter, or choose class_bias.")
    if mode != "matcher" and adapter is not None:
        notices.warn_user(
            f"{NODE}: an adapter is connected, but the mode {mode} does not use it. Choose automatic or matcher to use it."
        )
    return mode


def _levels(text: str) -> tuple[int, ...]:
    """`1, 2, 4, 8`, or nothing for all. Raises ValueError for anything else."""
    words = text.replace(",", " ").split()
    if any(word not in ("1", "2", "4", "8", "16") for word in words):
        raise ValueError(
            f"{NODE}: levels is {text!r}; list how many times smaller than the latent the layers are, of 1, 2, 4, 8, or leave it empty."
        )
    return tuple(int(word) for word in words)


def _check_model(model: Any, adapter: LoadedMatcher | None, mode: str) -> None:
    unet = model.get_model_object("diffusion_model")
    given, known = getattr(unet, "in_channels", None), model.get_model_object("latent_format").latent_channels
    if given is not None and given != known:
        raise ValueError(
            f"{NODE}: this MODEL ({hooks.model_name(model)}) reads {given} channels, {given - known} of them beside the picture (an inpainting "
            "or editing model). Load an ordinary text-to-image checkpoint."
        )
    if adapter is None or mode != "matcher":
        return
    for key, block in hooks.attention_blocks(unet).items():
        if block.attn1.heads % adapter.layout.heads:
            raise ValueError(
                f"{NODE}: {adapter.file!r} was made for layers of {adapter.layout.heads} attention heads, but this MODEL "
                f"({hooks.model_name(model)}) has {block.attn1.heads} in block {key[0]} {key[1]}. Load the base model that it was trained for "
                "(Stable Diffusion 1.5 for the published one), or use the mode class_bias."
            )
