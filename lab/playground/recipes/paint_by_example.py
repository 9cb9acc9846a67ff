"""Paint by Example on the drawn world: the base UNet learns to read an image with a hole and one token of an exemplar.

Trained as the paper does it (`py/paint_by_example/training.py`), from objects of drawn scenes. The image encoder is frozen; of the UNet only the
first convolution, which gets five channels more, and the transformers are trained, without what one token leaves unused. Everything but the
noise is computed once: latents of the image and of the image with a hole, the hole, the class token of the exemplar.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....py.imaging import crop, masks
from ....py.paint_by_example import shapes
from ....py.paint_by_example.exemplar import normalise
from ....py.paint_by_example.model import ExemplarMapper
from ....py.paint_by_example.training import exemplar_box, is_usable, make_context, unet_input
from ....py.playground import world
from ....py.playground.scene import Box, Scene
from ...training.augmentation import Augmentation
from ...training.loop import Schedule, fit
from ..dataset import draw_many, in_chunks, training_keys
from .base import alphas_cumprod, diffusion_loss

EXAMPLES = 6_000
FIRST = 900_000
CHUNK = 1_000
BATCH = 32
DROP = 0.2
VIEWS = 4  # of each exemplar, augmented anew
BACKDROP = 0.7  # of the exemplars: stand before another plain backdrop, since what is around an object must come from the image
OBJECTS = 0.75  # of each batch
MOST_ROOM = 0.5  # on one side of an object, of its longer side
SIDE = 128
CELL = 8
SCHEDULE = Schedule(
    steps=8750, learning_rate=6e-4, warmup=80, final_rate=0.03, weight_decay=0.01, ema=0.998, checkpoint_every=250, seed=16
)


@dataclass(frozen=True)
class Networks:
    """What is trained and the frozen parts around it; the host room builds it.

    unet: nine channels, with the base's weights. encode: images [n, 3, side, side] in 0..1 -> unit latents [n, 4, h, w].
    pooled: normalised pixels [n, 3, side, side] -> class tokens [n, width].
    """

    unet: nn.Module
    mapper: ExemplarMapper
    encode: Callable[[Tensor], Tensor]
    pooled: Callable[[Tensor], Tensor]


def _example(scene: Scene, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor] | None:
    """Image [3, s, s], hole [s, s] and exemplar with its thing's mask [4, s, s] of a scene, 0..1; None without an object of a usable size."""
    things = [(number, thing) for number, thing in enumerate(scene.instances, 1) if is_usable(thing.box)]
    if not things:
        return None
    number, thing = things[int(torch.randint(len(things), (), generator=rng))]
    picture = torch.tensor(scene.image).permute(2, 0, 1).float() / 255
    x0, y0, x1, y1 = exemplar_box(thing.box, SIDE, rng)
    masked = torch.cat([picture, torch.from_numpy(scene.instance_map == number)[None].float()])
    exemplar = F.interpolate(masked[None, :, y0:y1, x0:x1], size=(SIDE, SIDE), mode="bilinear", antialias=True)[0]
    hole = shapes.draw_mask_shape(_roomy(thing.box, rng), SIDE, SIDE, rng, extension=0.25, jitter=2)
    return picture, hole, exemplar


def _roomy(box: Box, rng: torch.Generator) -> Box:
    """A box in pixels, along each axis half of the time larger: the hole's proportions must not reveal what was there."""
    x0, y0, x1, y1 = (value * SIDE for value in box)
    left, top, right, bottom = (torch.rand(4, generator=rng) * MOST_ROOM * max(x1 - x0, y1 - y0)).tolist()
    wider, higher = (torch.rand(2, generator=rng) < 0.5).tolist()
    x0, x1 = (max(0.0, x0 - left), min(float(SIDE), x1 + right)) if wider else (x0, x1)
    y0, y1 = (max(0.0, y0 - top), min(float(SIDE), y1 + bottom)) if higher else (y0, y1)
    return x0, y0, x1, y1


def _before_backdrops(exemplars: Tensor, rng: torch.Generator) -> Tensor:
    """Exemplars with their masks [n, 4, s, s] -> [n, 3, s, s], a share of them before a backdrop of another colour."""
    pictures, things = exemplars[:, :3], exemplars[:, 3:]
    colours = torch.tensor(list(world.BACKDROPS.values())) / 255
    backdrop = colours[torch.randint(len(colours), (len(pictures),), generator=rng)][..., None, None]
    changed = (torch.rand((len(pictures), 1, 1, 1), generator=rng) < BACKDROP).float()
    return pictures.lerp(backdrop, changed * (1 - things))


def _prepared(first: int, number: int, nets: Networks) -> dict[str, Tensor]:
    """Everything of some examples that no training step changes."""
    keys = training_keys(number, first)
    rng = torch.Generator().manual_seed(first)
    found = [(kind, example) for (kind, _), scene in zip(keys, draw_many(keys)) if (example := _example(scene, rng)) is not None]
    pictures, holes, exemplars = (torch.stack(parts) for parts in zip(*(example for _, example in found)))
    augment = Augmentation()

    def pooled(batch: Tensor) -> Tensor:
        return nets.pooled(normalise(augment(_before_backdrops(batch, rng), rng))).half()

    with torch.no_grad():
        latents = torch.cat([nets.encode(batch).half() for batch in pictures.split(32)])
        known = torch.cat([nets.encode(b).half() for b in crop.erase_hole(pictures, holes[:, None]).split(32)])
        classes = torch.stack([torch.cat([pooled(batch) for batch in exemplars.split(32)]) for _ in range(VIEWS)], dim=1)
    grid = (SIDE // CELL, SIDE // CELL)
    return {
        "latents": latents,
        "known": known,
        "holes": masks.mask_to_latent(holes[:, None], grid, "bilinear").half(),
        "pooled": classes,
        "objects": torch.tensor([kind == "objects" for kind, _ in found]),
    }


def train(nets: Networks, folder: Path, schedule: Schedule = SCHEDULE, examples: int = EXAMPLES) -> None:
    """Train the UNet and the mapper in place."""
    chunks = in_chunks(folder, "exemplars", FIRST, examples, CHUNK, lambda first, number: _prepared(first, number, nets))
    data = {key: torch.cat([chunk[key] for chunk in chunks]) for key in chunks[0]}
    alphas = alphas_cumprod()
    objects = data["objects"]
    weight = torch.where(objects, OBJECTS / objects.sum().clamp(min=1), (1 - OBJECTS) / (~objects).sum().clamp(min=1))

    def loss(_: int, rng: torch.Generator) -> Tensor:
        rows = torch.multinomial(weight, BATCH, replacement=True, generator=rng)
        which = torch.randint(data["pooled"].shape[1], (BATCH,), generator=rng)
        context = make_context(nets.mapper, data["pooled"][rows, which].float(), DROP, rng)
        known, hole = data["known"][rows].float(), data["holes"][rows].float()
        return diffusion_loss(
            lambda x, t: nets.unet(unet_input(x, known, hole), t, context=context), data["latents"][rows].float(), rng, alphas
        )

    fit("paint_by_example", {"unet": nets.unet, "mapper": nets.mapper}, loss, schedule, folder)
