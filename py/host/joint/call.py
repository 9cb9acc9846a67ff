"""One call of the host's model object, and the texts that are added to it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from ...joint.layout import Grid
from .. import grids
from ..grids import Rows
from ..run import SamplingRun
from . import families, texts
from .contribution import Contribution
from .families import Family

IS_ACTING = "exemplary_joint_is_acting"  # in the options of a call that is joined already, or recorded


@dataclass(frozen=True, eq=False)
class ModelCall:
    """A call of the host's model object that is about to happen.

    Args:
        model: the model object. arguments: by name, as `apply_model` takes them; `conditions` are those beside the text.
    """

    run: SamplingRun
    model: Any
    family: Family
    arguments: dict[str, Any]
    conditions: dict[str, Any]

    @property
    def latent(self) -> Tensor:
        return self.arguments["x"]

    @property
    def prompt(self) -> Tensor:
        return self.arguments["c_crossattn"]

    @property
    def options(self) -> dict:
        return self.arguments["transformer_options"]

    @property
    def rows(self) -> int:
        return self.latent.shape[0]

    @property
    def sigma(self) -> float:
        return self.run.sigma(self.options)

    @cached_property
    def grid(self) -> Grid:
        return families.image_grid(self.family, self.model.diffusion_model, self.latent)

    @cached_property
    def multiple(self) -> int | None:
        return self.family.multiple(families.plain_network(self.model.diffusion_model))

    def chunks(self) -> list[tuple[Rows, bool]] | None:
        """(rows, whether they are conditional) of every condition in this call whose part of the image is known; None if rows are mixed."""
        options = {**self.options, "original_shape": self.latent.shape}
        found = grids.chunks(options, self.rows)
        if found is None:
            return None
        chunks = []
        for chunk, first, last, conditional in found:
            view = grids.chunk_view(self.run, options, chunk)
            if view is not None:
                chunks.append(
                    (Rows(slice(first, last), self.grid, view, grids.frame_indices(options, last - first)), conditional)
                )
        return chunks


@dataclass(frozen=True, eq=False)
class AddedText:
    """One appended text: who brought it, for which of its regions, and its tokens; `owner` None is a filler that nobody attends to."""

    owner: Contribution | None
    region: int
    text: texts.Text

    @property
    def length(self) -> int:
        return self.text.tokens.shape[1]
