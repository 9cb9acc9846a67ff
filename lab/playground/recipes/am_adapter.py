"""AM-Adapter of the playground: ControlNeXt on streets and their maps, then the matcher on two views of each street.

ControlNeXt learns first alone, then together with the UNet's half after it, which so learns to follow the map: at 8 x 8 latent cells a
frozen one is guided too weakly. Text encoder and VAE are the finished ones and stay as they are. Prompts are mostly bare, so that layout
must come from the map and colours from the exemplar.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from ....py.am_adapter.model import ControlNeXtLayout, MatcherLayout
from ....py.am_adapter.training import crop_second_view
from ....py.playground import world
from ....py.playground.vocabulary import encode_padded
from ...training.loop import Schedule, fit
from ..dataset import draw_many, pictures
from .base import Encode, alphas_cumprod, diffusion_loss

log = logging.getLogger("exemplary")

SCENES = 2000
BARE = "a street"
CONTROLNEXT = ControlNeXtLayout(out_channels=64, widths=(16, 32, 64), time_channels=64, time_width=64)
CONTROL_BATCH = 12
CONTROL_SCHEDULE = Schedule(
    steps=900, learning_rate=1e-3, warmup=60, final_rate=0.03, weight_decay=0.01, ema=0.995, checkpoint_every=250, seed=21
)
JOINT_SCHEDULE = Schedule(
    steps=1000, learning_rate=8e-4, warmup=60, final_rate=0.03, weight_decay=0.01, ema=0.995, checkpoint_every=250, seed=23
)
UNET_RATE = 0.5  # of the learning rate
TRAINED = ("middle_block.", "output_blocks.")  # of the UNet
MATCHER = MatcherLayout(heads=4, widths=(8, 16, 8))
MATCHER_BATCH = 4
MATCHER_SCHEDULE = Schedule(
    steps=300, learning_rate=2e-3, warmup=50, final_rate=0.03, weight_decay=0.0, ema=0.99, checkpoint_every=100, seed=22
)

#: Tokens [b, 77] -> context [b, 77, c].
TextContext = Callable[[Tensor], Tensor]
#: (noisy latents, timesteps, context, maps' colours) -> the predicted noise.
Controlled = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
#: The same with the target's labels before the colours, and (noisy latents, labels, colours) of the exemplars at the end.
Matched = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Tensor]], Tensor]


def streets(encode: Encode, folder: Path) -> dict[str, Tensor]:
    """Unit latents, labels and caption tokens of training streets, and latents and labels of a second view of each. Made once."""
    path = folder / "streets.pt"
    if not path.exists():
        scenes = draw_many([("street", seed) for seed in range(SCENES)])
        images = torch.from_numpy(pictures(scenes)).permute(0, 3, 1, 2)
        labels = torch.stack([torch.from_numpy(scene.labels) for scene in scenes])
        rng = torch.Generator().manual_seed(CONTROL_SCHEDULE.seed)
        views = [crop_second_view(image.float() / 255, label, rng) for image, label in zip(images, labels)]
        data = {
            "latents": _encoded(encode, images),
            "labels": labels,
            "tokens": torch.tensor(encode_padded(scene.caption for scene in scenes), dtype=torch.int16),
            "view_latents": _encoded(encode, torch.stack([(255 * view).round().byte() for view, _ in views])),
            "view_labels": torch.stack([label for _, label in views]),
        }
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(data, path)
        log.info("streets: %d encoded", len(scenes))
    return torch.load(path, weights_only=True)


@torch.no_grad()
def _encoded(encode: Encode, images: Tensor) -> Tensor:
    return torch.cat([encode(batch.float().div(255)).half() for batch in images.split(32)])


def colours_of(labels: Tensor) -> Tensor:
    """The image of a map, [b, h, w] -> [b, 3, h, w], 0..1."""
    table = torch.zeros(256, 3)
    table[: len(world.CLASSES)] = torch.tensor(list(world.CLASSES.values())) / 255
    return rearrange(table[labels.long()], "b h w c -> b c h w")


def _contexts(text: TextContext, tokens: Tensor, bare: float, rng: torch.Generator) -> Tensor:
    """Contexts of captions, of which a share `bare` says no more than that it is a street, or nothing."""
    simple = torch.tensor(encode_padded([BARE, ""]), dtype=tokens.dtype)
    chosen = simple[(torch.rand(len(tokens), generator=rng) < 0.3).long()]
    dropped = torch.rand((len(tokens), 1), generator=rng) < bare
    with torch.no_grad():
        return text(torch.where(dropped, chosen, tokens).long())


def train_controlnext(
    control: nn.Module,
    unet: nn.Module,
    predict: Controlled,
    text: TextContext,
    encode: Encode,
    folder: Path,
) -> None:
    """Stage 1: train ControlNeXt in place, then it and the later half of the UNet; `predict` runs the one inside of the other."""
    data, alphas = streets(encode, folder), alphas_cumprod()

    def loss(_: int, rng: torch.Generator) -> Tensor:
        rows = torch.randint(len(data["latents"]), (CONTROL_BATCH,), generator=rng)
        context = _contexts(text, data["tokens"][rows], 0.6, rng)
        hint = colours_of(data["labels"][rows])
        return diffusion_loss(lambda x, t: predict(x, t, context, hint), data["latents"][rows].float(), rng, alphas)

    fit("controlnext", {"control": control}, loss, CONTROL_SCHEDULE, folder)
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(name.startswith(TRAINED))
    both = {"control": control, "unet": unet}
    fit("controlnext_unet", both, loss, JOINT_SCHEDULE, folder, rates={"unet": UNET_RATE})


def train_matcher(
    matcher: nn.Module,
    predict: Matched,
    text: TextContext,
    encode: Encode,
    folder: Path,
    schedule: Schedule = MATCHER_SCHEDULE,
) -> None:
    """Stage 2: train the matcher in place, everything inside `predict` but it frozen."""
    data, alphas = streets(encode, folder), alphas_cumprod()

    def loss(_: int, rng: torch.Generator) -> Tensor:
        rows = torch.randint(len(data["latents"]), (MATCHER_BATCH,), generator=rng)
        context = _contexts(text, data["tokens"][rows], 1.0, rng)
        labels, view_labels, view = data["labels"][rows], data["view_labels"][rows], data["view_latents"][rows].float()
        hint, view_hint, noise = colours_of(labels), colours_of(view_labels), torch.randn(view.shape, generator=rng)

        def noisy(t: Tensor) -> Tensor:
            a = alphas[t].view(-1, 1, 1, 1)
            return a.sqrt() * view + (1 - a).sqrt() * noise

        return diffusion_loss(
            lambda x, t: predict(x, t, context, labels, hint, (noisy(t), view_labels, view_hint)),
            data["latents"][rows].float(),
            rng,
            alphas,
        )

    fit("matcher", {"matcher": matcher}, loss, schedule, folder)
