"""AM-Adapter on a UNet: self-attention of the target also attends to exemplars (`py/am_adapter/attention.py`).

    Apply AM-Adapter (nodes/am_adapter.py)
      apply                           encode_exemplars: IMAGE and map -> latents and labels in the target's palette (inputs.py)
        |                             installs one ExemplarAttention in the attn1 slots, and the wrapper gather_before_call
      MODEL
        |
    a call of the UNet while sampling
      gather_before_call              ExemplarAttention.gather, for each positive condition of the call:
        |                               lookup_features (exemplar.py): keys and values of every layer, from the cache,
        |                               or from a pass of the same UNet over the exemplars at this noise level
      UNet, in each attn1 layer
        AttentionSlot (slots.py)      the host's attention of all rows
          ExemplarAttention.__call__  for the rows of each positive condition (grids.conditional_rows):
            Application.exemplars       this layer's keys and values; which tokens share a class; the matcher's P
            augmented_attention         the paper's layer; its change goes back to the slot

Several Apply nodes in a chain share one ExemplarAttention, so that one softmax weighs all their exemplars.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...am_adapter.agreement import PAPER_FORMULAS, PUBLISHED_CODE, Behaviour, ClassAgreement, compare_classes
from ...am_adapter.attention import MODES, Attend, Exemplar, Match, Settings, augmented_attention, match_tokens, matching_grid
from ...am_adapter.checkpoint import parse_matcher
from ...am_adapter.model import Matcher, MatcherLayout
from ...semantic.palettes import VOID
from .. import grids, hooks, inputs, networks, notices, slots
from ..run import SamplingRun, current_run, running_network
from ..schedule import PercentRange
from ..slots import as_conditional_rows
from . import cache, files, transformer
from .cache import Features
from .exemplar import EncodedExemplars, lookup_features, passes_of_call
from .inputs import Target, check_target, encode_exemplars

LOAD = files.LOAD_MATCHER
NODE = "Apply AM-Adapter"
KEY = "exemplary_am_adapter"
OBSERVER = "exemplary_am_observer"  # in the options of a call that is watched

AUTOMATIC = "automatic"
#: Parts of the UNet: the host's name -> the matcher's name.
PARTS = {"input": "down", "middle": "mid", "output": "up"}
PART_CHOICES = {
    "all": ("down", "mid", "up"),
    "up": ("up",),
    "middle and up": ("mid", "up"),
    "down": ("down",),
    "down and middle": ("down", "mid"),
}
LEVELS = ("1", "2", "4", "8", "16")
BEHAVIOURS: dict[str, Behaviour | None] = {"as the file says": None, "upstream": PUBLISHED_CODE, "corrected": PAPER_FORMULAS}


@dataclass(frozen=True, eq=False)
class LoadedMatcher:
    """A matcher's network and how it was trained to be used."""

    patcher: Any  # ModelPatcher
    layout: MatcherLayout
    behaviour: Behaviour
    file: str


def load(file: str, behaviour: str = "as the file says") -> LoadedMatcher:
    """Load a matcher from the model folder am_adapter. Raises ValueError naming the file, what it is and what to do."""
    inputs.check_choice(behaviour, LOAD, "behaviour", BEHAVIOURS)
    found = files.load(file, LOAD, parse_matcher)
    return LoadedMatcher(
        networks.load(Matcher, found.weights, found.layout), found.layout, BEHAVIOURS[behaviour] or found.behaviour, file
    )


@dataclass(frozen=True, eq=False)
class Choice:
    """The settings of one Apply node."""

    settings: Settings
    percent: PercentRange
    parts: tuple[str, ...]
    levels: tuple[int, ...]  # how many times smaller than the latent the layers are; () is all
    match_void: bool
    matcher: LoadedMatcher | None = None

    @property
    def behaviour(self) -> Behaviour:
        return PAPER_FORMULAS if self.matcher is None else self.matcher.behaviour

    @property
    def needs_negative_rows(self) -> bool:
        """Whether the matcher's peak is taken over the negative rows too, as in the published code."""
        return self.settings.mode == "matcher" and self.behaviour.joint_peak

    def is_active_in(self, options: dict, grid: grids.Grid) -> bool:
        """Whether the calling layer is one of the chosen parts and levels."""
        if PARTS.get(options["block"][0]) not in self.parts:
            return False
        height = options["original_shape"][-2] if "original_shape" in options else grid[0]
        return not self.levels or 2 ** round(math.log2(max(1.0, height / grid[0]))) in self.levels


@dataclass(frozen=True)
class Origin:
    """Whose tokens a layer attends to: exemplar number `index` of a node, on this grid."""

    application: Application
    index: int
    grid: grids.Grid


@dataclass(frozen=True, eq=False)
class _LayerCall:
    """The rows of one positive condition in one call of one layer.

    Args:
        q: [rows, l, c] of the condition. negatives: [(q [rows, l, c], features)] of the call's negative conditions, if they are needed.
    """

    q: Tensor
    rows: grids.Rows
    options: dict
    features: Features
    negatives: tuple[tuple[Tensor, Features], ...] = ()

    @property
    def layer(self) -> hooks.LayerKey:
        return hooks.layer_key(self.options)


@dataclass(frozen=True, eq=False)
class Application:
    """One Apply node: exemplars, the target that they are applied to, and how."""

    images: EncodedExemplars
    target: Target
    choice: Choice

    def __deepcopy__(self, memo: dict) -> Application:
        return self

    def check(self, run: SamplingRun) -> None:
        self.target.check_batches(run, NODE)
        if self.choice.settings.mode == "matcher" and self.choice.behaviour.flat:
            sizes = (tuple(run.latent_shape[-2:]), tuple(self.images.latents.shape[-2:]))
            if sizes != ((64, 64), (64, 64)):
                shown = " and ".join(f"{8 * w}x{8 * h}" for h, w in sizes)
                raise ValueError(
                    f"{NODE}: this adapter follows the published code, which supports 512x512 only; target and exemplar are {shown}. "
                    f"Use 512x512, or choose the behaviour corrected (paper formulas) in {LOAD}."
                )

    def exemplars(self, run: SamplingRun, call: _LayerCall) -> list[tuple[Exemplar, Origin]]:
        """The exemplars' tokens in the calling layer and how to attend to them; [] if the layer does not use them."""
        rows, settings = call.rows, self.choice.settings
        if call.layer not in call.features.layers or not self.choice.is_active_in(call.options, rows.grid):
            return []
        keys, values, grid = call.features.layers[call.layer]
        mask = self.target.mask_on(run, rows.grid, rows.view)
        mask = None if mask is None else rows.of(mask).to(call.q.device)
        found = []
        for index in range(len(self.images)):
            k, v = (t[index : index + 1].to(call.q) for t in (keys, values))
            agreement = self._compare(run, index, call, rows.grid, grid, PAPER_FORMULAS).select(list(rows.frames))
            match = self._match(run, index, call, k, grid) if settings.mode == "matcher" else None
            exemplar = Exemplar(k, v, agreement, match, 1.0 / len(self.images), settings, mask)
            found.append((exemplar, Origin(self, index, grid)))
        return found

    def _compare(
        self, run: SamplingRun, index: int, call: _LayerCall, grid: grids.Grid, exemplar_grid: grids.Grid, behaviour: Behaviour
    ) -> ClassAgreement:
        """C of target and exemplar number `index` on two grids, computed once per run."""
        view, q = call.rows.view, call.q

        def make() -> ClassAgreement:
            exemplar = self.images.labels[index if len(self.images.labels) > 1 else 0][None]
            target = grids.part_of(self.target.labels, view)
            void = None if self.choice.match_void else VOID
            found = compare_classes(target, exemplar, grid, exemplar_grid, behaviour=behaviour, void=void)
            return found.to(q.device, q.dtype)

        key = (self, "agreement", index, view, grid, exemplar_grid, behaviour, q.device, q.dtype)
        return run.get_or_make(key, make)

    def _match(self, run: SamplingRun, index: int, call: _LayerCall, keys: Tensor, grid: grids.Grid) -> Match:
        """P of the rows of a call with exemplar number `index`."""
        loaded: Any = self.choice.matcher
        behaviour, rows = loaded.behaviour, call.rows
        small, small_exemplar = (matching_grid(g, behaviour) for g in (rows.grid, grid))
        # The negative rows only count for the peak.
        negatives = [(q, features.layers[call.layer][0][index : index + 1].to(q)) for q, features in call.negatives]
        q = torch.cat([call.q, *(q for q, _ in negatives)])
        keys = torch.cat([k.expand(len(one), -1, -1) for one, k in [(call.q, keys), *negatives]])
        agreement = self._compare(run, index, call, small, small_exemplar, behaviour)
        agreement = agreement.select(list(rows.frames) * (len(q) // len(call.q)))
        encoder = loaded.patcher.model.encoder(PARTS[call.options["block"][0]], behaviour.part_encoder)
        found = match_tokens(encoder, q, keys, call.options["n_heads"], agreement, rows.grid, grid, behaviour=behaviour)
        return found.select(range(len(call.q))) if negatives else found


@dataclass(frozen=True, eq=False)
class ExemplarAttention:
    """attn1: tokens of the target attend to exemplars as well. One for all Apply nodes of a chain, so that one softmax weighs them all."""

    applications: tuple[Application, ...]

    def __deepcopy__(self, memo: dict) -> ExemplarAttention:
        return self

    def before_run(self, run: SamplingRun) -> None:
        cache.store().begin_run()
        for application in self.applications:
            application.check(run)

    def gathered(self, run: SamplingRun) -> dict[int, list[tuple[Application, Features]]]:
        """{chunk: [(application, features)]} of the running call of the UNet; empty while no exemplar acts."""
        return run.get_or_make((self, "gathered"), dict)

    def active(self, options: dict) -> bool:
        run = current_run(options)
        if run is None:
            return False
        if running_network(options) is None:
            run.warn_once(
                f"{NODE}: another pack replaces the UNet's forward, which skips the host's wrappers; exemplars have no effect."
            )
        return bool(self.gathered(run))

    # torch.compile follows the wrapper into the compiled model; the features must be recorded and kept outside of it.
    @torch.compiler.disable
    def gather(self, run: SamplingRun, unet: Any, arguments: dict) -> None:
        """Before a call of the UNet: the features that its layers will attend to."""
        options, gathered = arguments["transformer_options"], self.gathered(run)
        done: dict[Any, Features] = {}
        for application in self.applications:
            if not run.inside(application.choice.percent, options):
                continue
            images, includes_negative = application.images, application.choice.needs_negative_rows
            passes = passes_of_call(run, unet, arguments, images, includes_negative=includes_negative)
            for chunk, feature_pass in passes.items():
                # Chunks with one prompt share features; without a key (scheduled LoRAs) each chunk has its own pass.
                name = (images, feature_pass.key if feature_pass.key is not None else chunk)
                if name not in done:
                    done[name] = lookup_features(feature_pass, images, run.sigma(options))
                gathered.setdefault(chunk, []).append((application, done[name]))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict, text: Tensor) -> Tensor | None:
        run: Any = current_run(options)  # there is one, `active` has checked
        change = None
        is_first = True
        for rows in grids.conditional_rows(run, options, q, NODE, "exemplars have no effect", k):
            found = [pair for call, owner in self._calls(run, q, rows, options) for pair in owner.exemplars(run, call)]
            if found:
                change = torch.zeros_like(text) if change is None else change
                attend = _host_attention(options)
                if OBSERVER in options and is_first:
                    attend = options[OBSERVER].watching(attend, rows.grid, tuple(origin for _, origin in found))
                exemplars = [exemplar for exemplar, _ in found]
                part = rows.rows
                change[part] = (
                    augmented_attention(q[part], k[part], v[part], options["n_heads"], exemplars, attend=attend) - text[part]
                )
            is_first = False
        return change

    def _calls(self, run: SamplingRun, q: Tensor, rows: grids.Rows, options: dict) -> Iterator[tuple[_LayerCall, Application]]:
        """One call for each application that acts on these rows."""
        gathered = self.gathered(run)
        for application, features in gathered.get(rows.chunk, ()):
            negatives: tuple[tuple[Tensor, Features], ...] = ()
            if application.choice.needs_negative_rows:
                negatives = tuple(
                    (q[first:last], negative)
                    for chunk, first, last, conditional in grids.chunks(options, q.shape[0]) or ()
                    for owner, negative in gathered.get(chunk, ())
                    if not conditional and owner is application
                )
                if not negatives:
                    run.warn_once(
                        f"{NODE}: the published code takes the matcher's peak over the positive and the negative prompt, but a call has only "
                        "the positive one (CFG 1, or too little memory for both)."
                    )
            yield _LayerCall(q[rows.rows], rows, options, features, negatives), application


def gather_before_call(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """DIFFUSION_MODEL wrapper: gather the features of all exemplars, run the UNet, drop them."""
    arguments = {**dict(zip(("x", "timesteps", "context", "y", "control", "transformer_options"), args)), **kwargs}
    options = arguments["transformer_options"]
    run: Any = current_run(options)
    found = [t for t in slots.techniques(options) if isinstance(t, ExemplarAttention)] if run is not None else []
    try:
        for technique in found:
            technique.gather(run, executor.class_obj, arguments)
        return executor(*args, **kwargs)
    finally:
        for technique in found:
            technique.gathered(run).clear()


def _host_attention(options: dict) -> Attend:
    """The host's attention with a bias, for rows that a technique made."""
    row_options = as_conditional_rows(options)

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
            transformer_options=row_options,
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
    """A MODEL that gives the target map the exemplars' look. The given one is not changed; it is returned if nothing would act.

    Raises:
        ValueError: before anything is sampled, naming what was found and what to do.
    """
    percent = PercentRange.checked(start_percent, end_percent, NODE)
    for name, value, most in (("strength", strength, 10.0), ("class_strength", class_strength, 50.0), ("balance", balance, 1.0)):
        inputs.check_number(value, NODE, name, 0.0, most)
    inputs.check_choice(parts, NODE, "parts", PART_CHOICES)
    cache_mb = inputs.check_integer(cache_mb, NODE, "cache_mb", 0, 1 << 20)
    settings = Settings(_resolve_mode(mode, adapter), strength, class_strength, balance)
    is_unet = hooks.has_unet(model)
    keys = hooks.text_layers(model, NODE) if is_unet else []
    if is_unet:
        _check_model(model, adapter, settings.mode)
    else:
        transformer.check(model, NODE, adapter, settings.mode)
    chosen_levels = _parse_levels(levels)
    target = check_target(target_map, mask, NODE)
    if strength == 0.0 or percent.empty:
        return model
    images = encode_exemplars(model, vae, exemplar, exemplar_map, target_map, prompt, source, cache_mb << 20, NODE)
    if not is_unet:
        is_all = parts == "all" and not chosen_levels
        return transformer.apply(model, images, target, settings, percent, match_void, is_all, NODE)
    matcher = adapter if settings.mode == "matcher" else None
    choice = Choice(settings, percent, PART_CHOICES[parts], chosen_levels, match_void, matcher)
    return _install(model, Application(images, target, choice), keys)


def find_technique(model: Any) -> ExemplarAttention | None:
    """The exemplars of a MODEL; None without Apply AM-Adapter."""
    options = model.model_options["transformer_options"]
    return next((t for t in slots.techniques(options) if isinstance(t, ExemplarAttention)), None)


def _install(model: Any, application: Application, keys: list[hooks.LayerKey]) -> Any:
    earlier = find_technique(model)
    technique = ExemplarAttention((*(() if earlier is None else earlier.applications), application))
    clone = hooks.install(model, {"attn1": technique}, keys, instead_of=earlier)
    if not clone.get_wrappers(WrappersMP.DIFFUSION_MODEL, KEY):
        clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, gather_before_call)
    if application.choice.matcher is not None:
        networks.serve(clone, KEY, [application.choice.matcher.patcher])
    cache.register_store(clone)
    return clone


def _resolve_mode(mode: str, adapter: LoadedMatcher | None) -> str:
    inputs.check_choice(mode, NODE, "mode", (AUTOMATIC, *MODES))
    if mode == AUTOMATIC:
        return "class_bias" if adapter is None else "matcher"
    if mode == "matcher" and adapter is None:
        raise ValueError(f"{NODE}: the mode matcher needs weights. Connect {LOAD} to adapter, or choose class_bias.")
    if mode != "matcher" and adapter is not None:
        notices.warn_user(
            f"{NODE}: an adapter is connected, but the mode {mode} does not use it. Choose automatic or matcher to use it."
        )
    return mode


def _parse_levels(text: str) -> tuple[int, ...]:
    """`1, 2, 4, 8`, or nothing for all. Raises ValueError for anything else."""
    words = inputs.check_text(text, NODE, "levels").replace(",", " ").split()
    if any(word not in LEVELS for word in words):
        raise ValueError(
            f"{NODE}: levels is {text!r}; it must be a list of downscale levels (1, 2, 4, 8), or empty for all layers."
        )
    return tuple(int(word) for word in words)


def _check_model(model: Any, adapter: LoadedMatcher | None, mode: str) -> None:
    unet = model.get_model_object("diffusion_model")
    given, known = getattr(unet, "in_channels", None), model.get_model_object("latent_format").latent_channels
    if given is not None and given != known:
        raise ValueError(
            f"{NODE}: this MODEL ({hooks.model_name(model)}) has {given} input channels, {given - known} more than the image (an inpainting "
            "or editing model). Load a text-to-image checkpoint."
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
