"""CA2-SIS's idea inside Stable Diffusion: every latent cell is conditioned on its class's CONDITIONING. No weights of CA2-SIS are used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from comfy.ldm.modules.attention import optimized_attention_masked
from torch import Tensor

from ...ca2sis.regional import (
    VARIANTS,
    Attend,
    adaptive_attention,
    attention_shares,
    class_weights,
    classes_with_own_cell,
    early_gain,
    isolated_attention,
    soft_masks,
)
from ...semantic.masks import class_labels, present_names
from ...semantic.semantic_map import SemanticMap
from .. import grids, hooks, notices, padding
from ..joint import families
from ..run import SamplingRun, current_run
from ..schedule import PercentRange
from ..slots import as_conditional_rows
from . import transformer

NODE = "Class-Adaptive Attention"
WHOLE_RUN = PercentRange()
PROMPT = "Class Conditioning"
OBSERVER = "exemplary_ca2sis_observer"  # in transformer_options, only while a preview looks
#: Names of the choice of layers -> kinds of blocks.
LAYERS: dict[str, tuple[str, ...]] = {
    "all": ("input", "middle", "output"),
    "input": ("input",),
    "middle": ("middle",),
    "output": ("output",),
    "input and middle": ("input", "middle"),
    "middle and output": ("middle", "output"),
}


@dataclass(frozen=True, eq=False)
class ClassPrompt:
    """The text of some classes.

    Args:
        classes: their names as the user typed them, in the words of whatever map they will meet.
        tokens: [b, n, c], for Stable Diffusion without padding. conditioning: the whole, for transformer models.
    """

    classes: str
    tokens: Tensor
    weight: float
    conditioning: Any = None


@dataclass(frozen=True, eq=False)
class ClassPrompts:
    """A chain of class prompts, in order: the value that the nodes exchange."""

    items: tuple[ClassPrompt, ...] = ()

    def plus(self, item: ClassPrompt) -> ClassPrompts:
        return replace(self, items=(*self.items, item))


@dataclass(frozen=True)
class Settings:
    """Options besides the texts. Without arguments: the plain method. `DEFAULTS` gives the best images.

    Args:
        strength: how far text attention goes from the base text's to the classes'.
        leak, base_weight: see `class_weights`.
        isolate: see `isolated_attention`; on grids of at most ISOLATED_CELLS.
        early: see `early_gain`, 1 to MOST_EARLY.
        own_cells: of the classes that cover a whole cell on the latent's grid, the share that must have one on a layer's grid for
            the layer to take part. In coarser layers one cell covers objects and their surroundings; the few cells of a single class are
            mostly background, and would condition these layers, which decide the content, on the background only.
    """

    strength: float = 1.0
    percent: PercentRange = WHOLE_RUN
    leak: float = 0.05
    base_weight: float = 0.2
    variant: str = VARIANTS[0]
    isolate: float = 0.0
    layers: str = "all"
    early: float = 1.0
    own_cells: float = 0.0


#: Measured on held-out scenes of the playground with a phrase for each class.
DEFAULTS = Settings(leak=0.0, isolate=0.9, early=4.0, own_cells=0.7)
MOST_EARLY = 8.0
#: Self-attention is divided on grids up to this size, where the layout is decided; its table of all pairs of places is small there.
ISOLATED_CELLS = 1024


@dataclass(frozen=True, eq=False)
class Application:
    """One node's map and texts, resolved against each other."""

    labels: Tensor  # [f, H, W] uint8
    groups: tuple[tuple[int, ...], ...]
    prompts: tuple[ClassPrompt, ...]
    base: Tensor | None  # tokens instead of the sampler's positive
    settings: Settings

    def __deepcopy__(self, memo: dict) -> Application:
        return self

    def check(self, run: SamplingRun) -> None:
        latents = run.latent_shape[0]
        batches = [("semantic_map", self.labels), *((f"the conditioning of {p.classes!r}", p.tokens) for p in self.prompts)]
        for name, batch in batches if self.base is None else [*batches, ("base", self.base)]:
            if batch.shape[0] not in (1, latents):
                raise grids.batch_error(NODE, name, batch.shape[0], latents)
        (h, w), (own_h, own_w) = run.latent_shape[-2:], self.labels.shape[-2:]
        if not 0.9 < (w / h) / (own_w / own_h) < 1.1 and min(h, w) > 8:
            run.warn_once(f"{NODE}: the map is {own_w}x{own_h}, the image {8 * w}x{8 * h}; the map is stretched to it.")

    def masks(self, run: SamplingRun, grid: grids.Grid, view: grids.View) -> Tensor:
        """[f, r, h, w] of one grid, made once per run."""
        make = partial(soft_masks, grids.part_of(self.labels, view), self.groups, grid)
        return run.get_or_make((self, "masks", grid, view), make)

    def weights(self, run: SamplingRun, grid: grids.Grid, view: grids.View, device: torch.device) -> Tensor:
        """[f, 1 + r, l]: the attention weight of the base and of each text at every cell."""
        settings = self.settings

        def make() -> Tensor:
            own = [prompt.weight for prompt in self.prompts]
            return class_weights(self.masks(run, grid, view), settings.leak, settings.base_weight, own).flatten(2).to(device)

        return run.get_or_make((self, "weights", grid, view, device), make)

    def gain(self, run: SamplingRun, options: dict, part: grids.Rows, device: torch.device) -> Tensor:
        """Interpolation factor from the base text's attention to the classes', per image [1 or f, 1, 1]; 0 on grids too coarse for its map."""

        def make() -> Tensor:
            fine = run.latent_shape[-2], run.latent_shape[-1]
            here, there = (classes_with_own_cell(self.masks(run, g, part.view)).sum(dim=1) for g in (part.grid, fine))
            return (here >= self.settings.own_cells * there).to(device)[:, None, None]

        fine_enough = part.of(run.get_or_make((self, "fine enough", part.grid, part.view, device), make))
        return self.settings.strength * early_gain(run.sigma(options), self.settings.early, run.is_flow()) * fine_enough


@dataclass(frozen=True, eq=False)
class _ClassTechnique:
    """What both hooks share: the range of the schedule, the rows and cells of a call."""

    application: Application

    def __deepcopy__(self, memo: dict) -> Any:
        return self

    def before_run(self, run: SamplingRun) -> None:
        self.application.check(run)

    def active(self, options: dict) -> bool:
        run = current_run(options)
        return run is not None and run.inside(self.application.settings.percent, options)

    def conditional(self, run: SamplingRun, options: dict, q: Tensor) -> Iterator[grids.Rows]:
        return grids.conditional_rows(run, options, q, NODE, "classes have no effect")


class ClassText(_ClassTechnique):
    """attn2: every cell attends mostly to the text of its class."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict, text: Tensor) -> Tensor | None:
        run: Any = current_run(options)  # there is one, `active` has asked
        block, settings = hooks.running_block(options), self.application.settings
        if block is None:
            return None
        keys, values = self._projected(run, block, q)
        attend, change = _attend(options), None
        for part in self.conditional(run, options, q):
            own = q[part.rows]
            weights = part.of(self.application.weights(run, part.grid, part.view, q.device))
            read_keys, read_values = self._texts(k[part.rows], keys, part), self._texts(v[part.rows], values, part)
            found = adaptive_attention(own, read_keys, read_values, weights, settings.variant, attend)
            if OBSERVER in options:
                shares = attention_shares(own, read_keys, weights, options["n_heads"], settings.variant)
                options[OBSERVER].saw(self.application, part.grid, shares)
            change = torch.zeros_like(text) if change is None else change
            gain = self.application.gain(run, options, part, q.device).to(text.dtype)
            change[part.rows] = gain * (found - text[part.rows])
        return change

    def _texts(self, base: Tensor, projected: list[Tensor], part: grids.Rows) -> list[Tensor]:
        """The base first: the sampler's own, or what the user gave instead; then one of each class."""
        rows = base.shape[0]
        chosen = [part.of(t).expand(rows, -1, -1) for t in projected]
        return chosen if self.application.base is not None else [base, *chosen]

    def _projected(self, run: SamplingRun, block: Any, q: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        texts = [prompt.tokens for prompt in self.application.prompts]
        texts = texts if self.application.base is None else [self.application.base, *texts]

        def make() -> tuple[list[Tensor], list[Tensor]]:
            # The layers are called, never their weights read: they may be quantised, offloaded or carry a LoRA.
            tokens = [grids.to_like(text, q) for text in texts]
            return [block.attn2.to_k(t) for t in tokens], [block.attn2.to_v(t) for t in tokens]

        # With gradients each step needs a graph of its own.
        changing = run.weights_may_change() or torch.is_grad_enabled()
        return make() if changing else run.get_or_make((self, "projected", block, q.device, q.dtype), make)


class ClassPlaces(_ClassTechnique):
    """attn1: cells of different classes attend less to each other."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict, text: Tensor) -> Tensor | None:
        run: Any = current_run(options)
        if q.shape[1] > ISOLATED_CELLS:
            return None
        if k.shape[1] != q.shape[1]:
            run.warn_once(f"{NODE}: another node gives self-attention more to read; it is not divided by classes there.")
            return None
        change = None
        for part in self.conditional(run, options, q):
            rows, settings = part.rows, self.application.settings
            masks = part.of(self.application.masks(run, part.grid, part.view)).flatten(2).to(q.device)
            found = isolated_attention(q[rows], k[rows], v[rows], masks, settings.isolate, _attend(options))
            change = torch.zeros_like(text) if change is None else change
            change[rows] = settings.strength * (found - text[rows])
        return change


def _attend(options: dict) -> Attend:
    """The host's attention with a mask, for the rows made here."""
    ours = as_conditional_rows(options)

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        mask = mask if mask is None else mask.expand(q.shape[0], -1, -1)
        heads, precision = options["n_heads"], options.get("attn_precision")
        return optimized_attention_masked(q, k, v, heads, mask=mask, attn_precision=precision, transformer_options=ours)

    return attend


def class_prompt(classes: str, conditioning: Any, weight: float = 1.0, prompts: ClassPrompts | None = None) -> ClassPrompts:
    """The chain with one more text, without its padding where that can be recognised (`padding.without_padding`).

    Raises:
        ValueError: no class, an empty or unusable CONDITIONING, a weight out of range.
    """
    if not classes.strip():
        raise ValueError(f"{PROMPT}: classes is empty. Name at least one class of the map, for example: sky.")
    if not 0.0 <= weight <= 4.0:  # also refuses NaN
        raise ValueError(f"{PROMPT}: weight is {weight}; it must be a number from 0 to 4.")
    entries = list(conditioning or ())
    shorter = [[padding.without_padding(entry[0], entry[1].get("pooled_output")), *entry[1:]] for entry in entries]
    tokens = _tokens(shorter, f"{PROMPT}: the conditioning of {classes!r}")
    return (prompts or ClassPrompts()).plus(ClassPrompt(classes, tokens, weight, conditioning))


def apply(model: Any, semantic_map: SemanticMap, prompts: ClassPrompts, base: Any = None, settings: Settings = DEFAULTS) -> Any:
    """A MODEL whose latent cells attend to the texts of their classes. The given one is not changed; without an effect it is returned unchanged.

    Raises:
        ValueError: before anything is sampled, naming what was found and what to do.
    """
    _check_settings(settings)
    is_unet = hooks.has_unet(model)
    if not is_unet:
        families.require_family(model, NODE)
    keys = hooks.text_layers(model, NODE) if is_unet else []
    application = _resolved(semantic_map, prompts, base, settings)
    if application is None or settings.strength == 0.0 or settings.percent.empty:
        return model
    if not is_unet:
        return transformer.apply(model, application, base, NODE)
    _check_width(model, keys, application)
    chosen = [key for key in keys if key[0] in LAYERS[settings.layers]]
    techniques: dict[str, Any] = {"attn2": ClassText(application)}
    if settings.isolate > 0.0:
        techniques["attn1"] = ClassPlaces(application)
    return hooks.install(model, techniques, chosen)


def _resolved(semantic_map: SemanticMap, prompts: ClassPrompts, base: Any, settings: Settings) -> Application | None:
    """The texts by the labels of the map; None if the map shows none of their classes."""
    if not prompts.items:
        raise ValueError(f"{NODE}: there is no {PROMPT}. Connect one for each class that should have its own text.")
    shown = set(semantic_map.counts().sum(dim=0).nonzero().flatten().tolist())
    groups, kept, absent = [], [], []
    for prompt in prompts.items:
        group = tuple(class_labels(semantic_map.palette, prompt.classes, f"{PROMPT}: classes"))
        if shown.isdisjoint(group) or prompt.weight == 0.0:
            absent.append(prompt.classes)
            continue
        groups.append(group)
        kept.append(prompt)
    if absent:
        notices.warn_user(
            f"{NODE}: nothing reads the text of {', '.join(map(repr, absent))}: the map shows only {present_names(semantic_map)} "
            "(or its weight is 0)."
        )
    if not kept:
        return None
    tokens = None if base is None else _tokens(base, f"{NODE}: base")
    return Application(semantic_map.labels, tuple(groups), tuple(kept), tokens, settings)


def _tokens(conditioning: Any, what: str) -> Tensor:
    """The tokens of a CONDITIONING, [b, n, c]; combined ones one after another."""
    entries = list(conditioning or ())
    if not entries:
        raise ValueError(f"{what} is empty. Connect the output of CLIP Text Encode or of another node that makes CONDITIONING.")
    texts = [entry[0] for entry in entries]
    if any(t.ndim != 3 or t.shape[-1] != texts[0].shape[-1] for t in texts):
        shapes = ", ".join(str(list(t.shape)) for t in texts)
        raise ValueError(f"{what} holds texts of shapes {shapes}; they must be of one kind. Use one text encoder for all.")
    if not all(bool(torch.isfinite(t).all()) for t in texts):
        raise ValueError(f"{what} holds NaN or infinite values; the node that made it failed. Encode the text again.")
    ignored = sorted({name for _, more in entries for name in ("area", "mask", "start_percent", "end_percent") if name in more})
    if ignored:
        notices.warn_user(
            f"{what} is limited by {', '.join(ignored)}, which has no meaning here: the map says where a text is read."
        )
    b = max(t.shape[0] for t in texts)
    if any(t.shape[0] not in (1, b) for t in texts):
        raise ValueError(f"{what} combines batches of {' and '.join(str(t.shape[0]) for t in texts)}; give equal ones, or 1.")
    return torch.cat([t.detach().expand(b, -1, -1) for t in texts], dim=1)


def _check_settings(settings: Settings) -> None:
    for name, value, least, most in (
        ("strength", settings.strength, 0.0, 1.0),
        ("leak", settings.leak, 0.0, 1.0),
        ("base_weight", settings.base_weight, 0.0, 4.0),
        ("isolate", settings.isolate, 0.0, 1.0),
        ("early", settings.early, 1.0, MOST_EARLY),
    ):
        if not least <= value <= most:  # also refuses NaN
            raise ValueError(f"{NODE}: {name} is {value}; it must be a number from {least:g} to {most:g}.")
    for name, chosen, known in (("variant", settings.variant, VARIANTS), ("layers", settings.layers, tuple(LAYERS))):
        if chosen not in known:
            raise ValueError(f"{NODE}: {name} is {chosen!r}; choose one of: {', '.join(known)}.")


def _check_width(model: Any, keys: list[hooks.LayerKey], application: Application) -> None:
    needed = hooks.text_width(model, keys)
    texts = [(f"the conditioning of {p.classes!r}", p.tokens) for p in application.prompts]
    for name, tokens in texts if application.base is None else [*texts, ("base", application.base)]:
        if needed is not None and tokens.shape[-1] != needed:
            raise ValueError(
                f"{NODE}: {name} has width {tokens.shape[-1]}, but the MODEL ({hooks.model_name(model)}) reads width {needed}. "
                "Encode it with the CLIP of the same checkpoint."
            )
