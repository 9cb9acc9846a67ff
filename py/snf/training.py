"""The losses of a subject model (Face-diffuser and FastComposer): denoising inside the persons, and attention localised to each person.

    loss = mean( w ((eps - noise) m)^2 ) + 0.001 (mean of A outside of its person - mean of A inside)

m is 1 everywhere, or, for half of the images, the union of the persons' masks; the mean is over all latent pixels, masked or not. A is
the attention of the pixels of a layer to the token that a person was fused with. The caption is dropped together with all persons, and
single persons are dropped too. Torch only; the training loop and the models are in `lab`.

Shapes: b images, r references of one image, h w latent pixels, l queries of a layer, m text tokens, n heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .model import Postfuse

LOCALISATION = 1e-3
TRAINED_LAYERS = 2  # of the image encoder, the last ones

#: Queries and keys of each text attention layer below full size: (q, k, heads, (rows, columns)).
Attended = list[tuple[Tensor, Tensor, int, tuple[int, int]]]
#: Noisy latents [b, c, h, w], timesteps [b], context [b, m, c] -> epsilon, and the queries and keys of the attention layers.
Predict = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Attended]]


@dataclass(frozen=True)
class Drops:
    """Probabilities of dropout and of the masked loss. The defaults are the published ones."""

    caption: float = 0.1  # of dropping the caption and all persons
    person: float = 0.1  # of dropping one person: its token is not fused
    masked: float = 0.5  # of limiting the loss to the persons' masks

    def draw(self, present: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Random choices for one batch.

        Args:
            present: [b, r] bool, which persons an image has.

        Returns:
            no_caption [b] bool, used [b, r] bool (persons to fuse), masked [b] bool.
        """
        b = len(present)
        no_caption = torch.rand(b, generator=rng) < self.caption
        kept = torch.rand(present.shape, generator=rng) >= self.person
        masked = torch.rand(b, generator=rng) < self.masked
        return no_caption, present & kept & ~no_caption[:, None], masked


def loss_region(masks: Tensor, masked: Tensor) -> Tensor:
    """The weight m of the denoising loss at each latent pixel: [b, 1, h, w].

    Args:
        masks: [b, r, h, w], 0..1, one mask per person, zero for persons that are absent.
        masked: [b] bool. Without a person the weight is 1 everywhere: an empty region would give no gradient.
    """
    union = masks.amax(dim=1, keepdim=True)
    limited = masked & (union.flatten(1).amax(dim=1) > 0)
    return torch.where(limited[:, None, None, None], union, 1.0)


def fuse_batch(postfuse: Postfuse, text: Tensor, embeds: Tensor, positions: Tensor, used: Tensor) -> Tensor:
    """The prompts of a batch, fused with their references: [b, m, c]; differentiable.

    Args:
        text: [b, m, c].
        embeds: [b, r, c] image embeddings; only those that are `used` matter.
        positions: [b, r] token of each person.
        used: [b, r] bool.
    """
    if not used.any():
        return text
    image, reference = used.nonzero(as_tuple=True)
    token = positions[image, reference]
    fused = postfuse(text[image, token], embeds[image, reference])
    return text.index_put((image, token), fused.to(text.dtype))


def token_attention(q: Tensor, k: Tensor, heads: int, positions: Tensor) -> Tensor:
    """Attention of each pixel to each person's token, mean over the heads: [b, r, l].

    Args:
        q: [b, l, c]; k: [b, m, c]: queries and keys of a cross-attention layer.
        positions: [b, r].
    """
    q, k = (rearrange(t.float(), "b l (n d) -> b n l d", n=heads) for t in (q, k))
    probabilities = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1).mean(dim=1)  # [b, l, m]
    return probabilities.gather(2, positions[:, None].expand(-1, q.shape[2], -1)).transpose(1, 2)


def localisation_loss(attention: Sequence[tuple[Tensor, tuple[int, int]]], masks: Tensor, used: Tensor) -> Tensor:
    """Mean over layers and fused persons of: mean attention outside of the person minus mean inside. "Balanced L1", scalar.

    Args:
        attention: per layer [b, r, l] and the layer's grid (rows, columns).
        masks: [b, r, h, w]. used: [b, r] bool.
    """
    if not attention or not used.any():
        return masks.new_zeros(())
    losses = []
    for found, grid in attention:
        inside = F.interpolate(masks, size=grid, mode="area").flatten(2)[used]
        there = found[used]
        outside = 1.0 - inside
        mean_out = (there * outside).sum(dim=-1) / outside.sum(dim=-1).clamp(min=1e-6)
        mean_in = (there * inside).sum(dim=-1) / inside.sum(dim=-1).clamp(min=1e-6)
        losses.append((mean_out - mean_in).mean())
    return torch.stack(losses).mean()


def subject_loss(
    predict: Predict,
    denoising: Callable[[Callable[[Tensor, Tensor], Tensor]], Tensor],
    context: Tensor,
    positions: Tensor,
    masks: Tensor,
    used: Tensor,
    localisation: float = LOCALISATION,
) -> Tensor:
    """The loss of one batch, scalar.

    Args:
        predict: the UNet.
        denoising: given (noisy latents, timesteps) -> epsilon it returns the error of epsilon, inside of `loss_region`.
        context: from `fuse_batch`. positions, masks, used: as there and in `localisation_loss`.
    """
    attended: Attended = []

    def epsilon(x: Tensor, t: Tensor) -> Tensor:
        eps, attended[:] = predict(x, t, context)
        return eps

    value = denoising(epsilon)
    maps = [(token_attention(q, k, heads, positions), grid) for q, k, heads, grid in attended]
    return value + localisation * localisation_loss(maps, masks, used)


def is_trained(name: str) -> bool:
    """Whether a parameter of the UNet is trained where not everything is: the transformers, with the layers into and out of them."""
    return any(part in name for part in (".transformer_blocks.", ".proj_in.", ".proj_out."))


def is_trained_in_encoder(name: str, layers: int) -> bool:
    """Whether a parameter of an image encoder of so many layers is trained: those of the last `TRAINED_LAYERS`."""
    return any(f"encoder.layers.{number}." in name for number in range(layers - TRAINED_LAYERS, layers))
