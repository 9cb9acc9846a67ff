"""CA2-SIS's generator for drawn portraits: small, trained on images whose edited forms are known.

The full trainer is adversarial (`py/ca2sis/training.py`). Here every exchange of styles or shapes has one right answer, so the generator
learns edits directly: a third of each batch is drawn again from its own codes, a third with some classes' styles of another face, a third
with one class's shape of another face. With the attention loss that gives a sharper image in this time than a discriminator does.
Eyes, brows and mouths cover so few pixels that their codes would stay empty: classes weigh nearly alike, the mean colour of each class
counts besides its pixels, and a linear head, dropped afterwards, asks each code for its class's colour.
Afterwards the noise network learns which codes there are.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ....py.ca2sis.attention import attention_loss
from ....py.ca2sis.codes import one_hot, present_classes
from ....py.ca2sis.model import Config, Generator
from ....py.ca2sis.training import begin_, draw_watched, noise_loss
from ....py.playground.scenes import SIDE
from ...training.loop import Schedule, fit
from ..dataset import in_parallel
from ..faces import CLASSES, draw_trio, mean_colours, reshaped, restyled

log = logging.getLogger("exemplary")

CONFIG = Config(
    classes=len(CLASSES),
    mask_channels=len(CLASSES) - 1,
    style_dim=32,
    width=32,
    encoder_width=2,
    grid=(SIDE // 16, SIDE // 16),
    mask_size=(SIDE // 2, SIDE // 2),
    head_dims=(16, 16, 8, 4, 4),
    noise_dim=16,
    noise_width=64,
    tanh=False,
)
FACES = 6000
FIRST = 800_000
BATCH = 6
ATTENTION = 0.05
COLOUR = 0.3  # weight of the loss of the codes' colours
DRAWN_COLOUR = 2.0  # and of the colours of what is drawn
EVEN, HEAVIEST = 0.15, 20.0  # a class that covers less than this share of the image weighs more, so many times at most
SCHEDULE = Schedule(
    steps=4400, learning_rate=1.5e-3, warmup=50, final_rate=0.02, weight_decay=0.0, ema=0.99, checkpoint_every=100, seed=18
)
NOISE = Schedule(
    steps=1200, learning_rate=1e-3, warmup=50, final_rate=0.02, weight_decay=0.0, ema=0.99, checkpoint_every=400, seed=19
)
NOISE_BATCH, NOISE_TRIES = 32, 256


def colour_loss(pictures: Tensor, targets: Tensor, shape_mask: Tensor) -> Tensor:
    """The square error of the classes' mean colours, all classes alike, over the pixels that M_sw [b, k, h, w] gives to one class."""
    alone = shape_mask * (shape_mask.sum(dim=1, keepdim=True) == 1)
    error = (mean_colours(pictures, alone) - mean_colours(targets, alone)).square().mean(dim=-1)
    return error[present_classes(alone)].mean()


class CodeColours(nn.Module):
    """The mean colour of each class, read from its style code by one linear map a class."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(CLASSES), CONFIG.code_dim, 3))
        self.bias = nn.Parameter(torch.zeros(len(CLASSES), 3))

    def loss(self, style: Tensor, pictures: Tensor, masks: Tensor) -> Tensor:
        """The square error, over the classes that are there: S [b, k, code_dim], images [b, 3, h, w], M [b, k, h, w]."""
        told = torch.einsum("bkd,kdc->bkc", style, self.weight) + self.bias
        return (told - mean_colours(pictures, masks)).square().mean(dim=-1)[present_classes(masks)].mean()


class Faces:
    """Trios as tensors: images [n, 3, 3, h, w] uint8 (own, other, donor), maps [n, 2, h, w] uint8 (own, donor)."""

    def __init__(self, count: int = FACES, first: int = FIRST) -> None:
        log.info("drawing %d trios of faces", count)
        trios = in_parallel(draw_trio, list(range(first, first + count)))
        self.pictures = (
            torch.from_numpy(np.stack([np.stack([t.own, t.other, t.donor]) for t in trios])).movedim(-1, 2).contiguous()
        )
        self.labels = torch.from_numpy(np.stack([np.stack([t.own_labels, t.donor_labels]) for t in trios]))

    def rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images [b, 3, 3, h, w] in [-1, 1] and labels [b, 2, h, w] int64."""
        return self.pictures[rows].float() / 127.5 - 1, self.labels[rows].long()


def new_generator() -> Generator:
    """The generator before its training."""
    return begin_(Generator(CONFIG))


def edit_batch(pictures: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a batch is asked: a third nothing, a third other styles, a third another shape.

    Returns:
        Which styles are the donor's [b, k] bool; M_sw [b, k, h, w]; the right image [b, 3, h, w]; the weight of its pixels [b, 1, h, w].
    """
    own, other, donor = pictures.unbind(1)
    map_own, map_donor = labels.unbind(1)
    masks, donor_masks = (one_hot(m, len(CLASSES)) for m in (map_own, map_donor))
    both = present_classes(masks) & present_classes(donor_masks)
    kind = torch.arange(len(own)) % 3
    taken = (torch.rand(both.shape, generator=rng) < 0.4) & both & (kind == 1)[:, None]
    target = restyled(own, other, donor, map_own, map_donor, taken)

    # One class that both have; not the backdrop, which has no shape of its own.
    which = (torch.rand(both.shape, generator=rng) * both)[:, 1:].argmax(dim=1) + 1
    shaped = (kind == 2)[:, None, None]
    _, known, added = reshaped(map_own, map_donor, which)
    colour = mean_colours(own, masks[torch.arange(len(own)), which][:, None])
    target = torch.where((shaped & added)[:, None], colour[:, 0, :, None, None], target)
    rows = torch.arange(len(own))[kind == 2]
    shape_mask = masks.clone()
    shape_mask[rows, which[rows]] = donor_masks[rows, which[rows]]

    heavy = (EVEN / masks.mean(dim=(2, 3)).clamp_min(1e-6)).clamp(1, HEAVIEST)
    weight = torch.gather(heavy, 1, map_own.flatten(1)).view_as(map_own)
    weight = torch.where(shaped & ~known, 0.0, torch.where(shaped & added, 0.5, weight))
    return taken, shape_mask, target, weight[:, None]


def train(
    generator: Generator, folder: Path, schedule: Schedule = SCHEDULE, noise: Schedule = NOISE, faces: Faces | None = None
) -> None:
    """Train the generator in place: first all but the noise network, then that."""
    faces = faces or Faces()
    mapping, colours = generator.noise_encoder, CodeColours()
    if mapping is None:
        raise ValueError("this recipe trains a noise network too: give a configuration with noise_dim")

    def loss(_: int, rng: torch.Generator) -> Tensor:
        pictures, labels = faces.rows(torch.randint(len(faces.pictures), (BATCH,), generator=rng))
        taken, shape_mask, target, weight = edit_batch(pictures, labels, rng)
        masks, donor_masks = (one_hot(m, len(CLASSES)) for m in labels.unbind(1))
        read = torch.cat([pictures[:, 0], pictures[:, 2]]), torch.cat([masks, donor_masks])
        style = generator.encode_style(*read)
        own, donor = style.float().chunk(2)
        told = colours.loss(style.float(), *read)
        style = torch.where(taken[..., None], donor, own)
        # A sampled style has zeros for absent classes, an encoded one has not: the generator must take both.
        absent = ~present_classes(masks) & (torch.rand((len(own), 1), generator=rng) < 0.3)
        style = style.masked_fill(absent[..., None], 0.0)
        picture, logits = draw_watched(generator, generator.encode_shape(shape_mask), style)
        error = picture.float() - target
        # The square is what is measured; a little of the absolute error keeps flat places flat.
        drawn = (weight * (error.square() + 0.1 * error.abs())).mean()
        drawn = drawn + DRAWN_COLOUR * colour_loss(picture.float(), target, shape_mask)
        return drawn + COLOUR * told + ATTENTION * attention_loss(logits, shape_mask)

    mapping.requires_grad_(False)
    fit("ca2sis", {"generator": generator, "colours": colours}, loss, schedule, folder)

    codes, present = _all_codes(generator, faces)
    mapping.requires_grad_(True)

    def loss_of_noise(_: int, rng: torch.Generator) -> Tensor:
        rows = torch.randint(len(codes), (NOISE_BATCH,), generator=rng)
        made = mapping(torch.randn((NOISE_TRIES, CONFIG.noise_dim), generator=rng)).float()
        return noise_loss(made, codes[rows], present[rows])

    fit("ca2sis_noise", {"noise": mapping}, loss_of_noise, noise, folder)


@torch.no_grad()
def _all_codes(generator: Generator, faces: Faces) -> tuple[Tensor, Tensor]:
    codes, present = [], []
    for rows in torch.arange(len(faces.pictures)).split(32):
        pictures, labels = faces.rows(rows)
        masks = one_hot(labels[:, 0], len(CLASSES))
        codes.append(generator.encode_style(pictures[:, 0], masks).float())
        present.append(present_classes(masks))
    return torch.cat(codes), torch.cat(present)
