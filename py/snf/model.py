"""The network that puts a reference person into a prompt: FastComposer's and Face-diffuser's "postfuse" module.

It works on the text encoder's result, after its last layer norm: the row of the token that names the person ("man") is replaced by one
that also knows the person's picture. No other row changes, and the text encoder never sees the picture.

    h   = MLP1([t, v]) + t            t text row, v picture embedding
    h   = h + MLP2(h)
    t'  = LayerNorm(h)                MLP = Linear(GELU(Linear(LayerNorm(x)))), exact GELU, layer norms with eps 1e-5
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Follows the word that names a person in a prompt; the person's reference image takes its place.
MARKER = "<|image|>"


class MLP(nn.Module):
    """Layer norm and two linear layers, without a residual: [..., width_in] -> [..., width]."""

    def __init__(self, width_in: int, width: int, *, operations: Any = nn, dtype: Any = None, device: Any = None) -> None:
        super().__init__()
        settings = {"dtype": dtype, "device": device}
        self.layernorm = operations.LayerNorm(width_in, **settings)
        self.fc1 = operations.Linear(width_in, width, **settings)
        self.fc2 = operations.Linear(width, width, **settings)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width_in] -> [..., width]."""
        return self.fc2(F.gelu(self.fc1(self.layernorm(x))))


class Postfuse(nn.Module):
    """Text rows and picture embeddings -> text rows that know the pictures. Keys as in the files, without `postfuse_module.`.

    Args:
        width: of the text rows and of the picture embeddings; 768 for Stable Diffusion 1.5 (2,958,336 parameters).
        operations: where LayerNorm and Linear come from, torch.nn or the host's.
        dtype, device: of the weights.
    """

    def __init__(self, width: int = 768, *, operations: Any = nn, dtype: Any = None, device: Any = None) -> None:
        super().__init__()
        settings = {"operations": operations, "dtype": dtype, "device": device}
        self.width = width
        self.mlp1 = MLP(2 * width, width, **settings)
        self.mlp2 = MLP(width, width, **settings)
        self.layer_norm = operations.LayerNorm(width, dtype=dtype, device=device)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """New rows.

        Args:
            text: [..., width] rows of the text encoder's result.
            image: [..., width] picture embeddings after the visual projection, not normalised.

        Returns:
            [..., width].
        """
        h = self.mlp1(torch.cat([text, image], dim=-1)) + text  # text first: the order is in the weights
        h = h + self.mlp2(h)
        return self.layer_norm(h)

    def fused_prompt(self, text: Tensor, image_embeds: Tensor, positions: Sequence[int]) -> Tensor:
        """A prompt's embedding with a person in each of the named rows. Raises ValueError where the three do not fit.

        Args:
            text: [b, m, width], the encoded prompt, marker-free.
            image_embeds: [r, width], one row a reference.
            positions: r different row numbers (the start token is 0); the k-th takes the k-th reference.

        Returns:
            [b, m, width], a new tensor in text's dtype; other rows are the same bits.
        """
        positions = [int(position) for position in positions]
        if text.ndim != 3 or text.shape[-1] != self.width:
            raise ValueError(
                f"The prompt's embedding is {list(text.shape)}, but this subject model reads rows of {self.width} numbers. "
                "Encode the prompt with the CLIP of its base model (Stable Diffusion 1.5 for the published files)."
            )
        if image_embeds.ndim != 2 or image_embeds.shape[-1] != self.width:
            raise ValueError(
                f"The references' embeddings are {list(image_embeds.shape)}, but this subject model reads rows of {self.width} numbers. "
                "Encode the references with the image encoder from the subject model's own file."
            )
        if len(positions) != image_embeds.shape[0]:
            raise ValueError(
                f"There are {len(positions)} places for persons in the prompt and {image_embeds.shape[0]} references; "
                "each place needs one reference."
            )
        if len(set(positions)) != len(positions):
            raise ValueError(f"Two references share a place in the prompt (places {positions}); give each person its own word.")
        outside = [position for position in positions if not 0 <= position < text.shape[1]]
        if outside:
            raise ValueError(
                f"Place {outside[0]} is outside of the prompt, which has {text.shape[1]} tokens. Shorten the text before that person."
            )
        fused = text.clone()
        if positions:
            rows = text[:, positions]
            image = image_embeds.to(rows).expand_as(rows)
            fused[:, positions] = self(rows, image).to(text.dtype)
        return fused
