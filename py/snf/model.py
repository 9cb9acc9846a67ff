"""The network that adds a person's reference image to a prompt: FastComposer's and Face-diffuser's "postfuse" module.

It is applied to the text encoder's output, after the last layer norm: the embedding of the token that names the person ("man") is
replaced by one that also depends on the person's image. No other embedding changes; the text encoder itself never gets the image.

    h   = MLP1([t, v]) + t            t token embedding, v image embedding
    h   = h + MLP2(h)
    t'  = LayerNorm(h)                MLP = Linear(GELU(Linear(LayerNorm(x)))), exact GELU, layer norms with eps 1e-5
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Follows the word that names a person in a prompt: that word is fused with the person's reference image.
MARKER = "<|image|>"


class MLP(nn.Module):
    """Layer norm and two linear layers, without a residual: [..., width_in] -> [..., width]."""

    def __init__(self, width_in: int, width: int, *, operations: Any = nn, dtype: Any = None, device: Any = None) -> None:
        super().__init__()
        factory_kwargs = {"dtype": dtype, "device": device}
        self.layernorm = operations.LayerNorm(width_in, **factory_kwargs)
        self.fc1 = operations.Linear(width_in, width, **factory_kwargs)
        self.fc2 = operations.Linear(width, width, **factory_kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width_in] -> [..., width]."""
        return self.fc2(F.gelu(self.fc1(self.layernorm(x))))


class Postfuse(nn.Module):
    """Token embeddings and image embeddings -> fused token embeddings. Keys as in the files, without `postfuse_module.`.

    Args:
        width: of the token and image embeddings; 768 for Stable Diffusion 1.5 (2,958,336 parameters).
        operations: module with LayerNorm and Linear, torch.nn or the host's.
        dtype, device: of the weights.
    """

    def __init__(self, width: int = 768, *, operations: Any = nn, dtype: Any = None, device: Any = None) -> None:
        super().__init__()
        factory_kwargs = {"operations": operations, "dtype": dtype, "device": device}
        self.width = width
        self.mlp1 = MLP(2 * width, width, **factory_kwargs)
        self.mlp2 = MLP(width, width, **factory_kwargs)
        self.layer_norm = operations.LayerNorm(width, dtype=dtype, device=device)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """The fused embeddings of some tokens.

        Args:
            text: [..., width] token embeddings, from the text encoder.
            image: [..., width] image embeddings after the visual projection, not normalised.

        Returns:
            [..., width].
        """
        h = self.mlp1(torch.cat([text, image], dim=-1)) + text  # text first: the order is in the weights
        h = h + self.mlp2(h)
        return self.layer_norm(h)

    def fuse_prompt(self, text: Tensor, image_embeds: Tensor, positions: Sequence[int]) -> Tensor:
        """A prompt's embeddings, those at the given positions fused with reference images.

        Args:
            text: [b, m, width], the encoded prompt without markers.
            image_embeds: [r, width], one reference per row.
            positions: r different token positions (the start token is 0); the k-th is fused with the k-th reference.

        Returns:
            [b, m, width], a new tensor in text's dtype; the other tokens are bit-identical.

        Raises:
            ValueError: widths, numbers or positions that do not match.
        """
        positions = [int(position) for position in positions]
        if text.ndim != 3 or text.shape[-1] != self.width:
            raise ValueError(
                f"The encoded prompt is {list(text.shape)}, but this subject model needs embeddings of width {self.width}. "
                "Encode the prompt with the CLIP of its base model (Stable Diffusion 1.5 for the published files)."
            )
        if image_embeds.ndim != 2 or image_embeds.shape[-1] != self.width:
            raise ValueError(
                f"The encoded references are {list(image_embeds.shape)}, but this subject model needs embeddings of width {self.width}. "
                "Encode the references with the image encoder from the subject model's own file."
            )
        if len(positions) != image_embeds.shape[0]:
            raise ValueError(
                f"There are {len(positions)} persons in the prompt and {image_embeds.shape[0]} references; "
                "each person needs one reference."
            )
        if len(set(positions)) != len(positions):
            raise ValueError(f"Two references are for the same token (positions {positions}); give each person its own word.")
        outside = [position for position in positions if not 0 <= position < text.shape[1]]
        if outside:
            raise ValueError(
                f"Position {outside[0]} is outside of the prompt, which has {text.shape[1]} tokens. Shorten the text before that person."
            )
        fused = text.clone()
        if positions:
            rows = text[:, positions]
            image = image_embeds.to(rows).expand_as(rows)
            fused[:, positions] = self(rows, image).to(text.dtype)
        return fused
