"""Trains the playground's models in order and writes the files that ship. `dev.py playground train` runs `main`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..ifadapter import checkpoint as ifadapter_checkpoint
from ..ifadapter.model import IFAdapter
from ..playground.judge import Judge
from ..playground.recipes import autoencoder, base, ifadapter, image_encoder, judge, paint_by_example
from . import ifadapter_text, ifadapter_training, paint_by_example_training, playground

log = logging.getLogger("exemplary")

INITIAL_SEED = 1  # of every network's first weights; the batches have the seed of their schedule
CHECKPOINTS = playground.ASSETS.parents[1] / "output" / "playground"


def _ship(name: str, state: dict[str, Tensor], **facts: object) -> None:
    """Write one file in float16 beside the others, with what it is in its metadata."""
    playground.ASSETS.mkdir(parents=True, exist_ok=True)
    path = playground.ASSETS / f"{name}.safetensors"
    save_file(
        {key: value.detach().half().contiguous() for key, value in state.items()}, path, {k: str(v) for k, v in facts.items()}
    )
    path.chmod(0o644)  # the library writes for the owner alone; these files ship
    log.info("%s: %.1f MB", path.name, path.stat().st_size / 1e6)


def _encode_with(model: Any):
    def encode(images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model.taesd_encoder(images.contiguous(memory_format=torch.channels_last)).float()

    return encode


def _trained_autoencoder(folder: Path) -> nn.Module:
    torch.manual_seed(INITIAL_SEED)
    model = playground.new_autoencoder()
    autoencoder.train(model, folder)
    return model


def train_autoencoder(folder: Path) -> None:
    """The VAE."""
    state = _trained_autoencoder(folder).state_dict()
    _ship(
        "vae",
        {k: v for k, v in state.items() if k.startswith("taesd_")},
        steps=autoencoder.SCHEDULE.steps + autoencoder.FINISH.steps,
    )


def train_base(folder: Path) -> None:
    """UNet and text encoder, on the latents of the finished VAE."""
    encoder = _trained_autoencoder(folder)  # resumed at its end: loads the finished checkpoint
    torch.manual_seed(INITIAL_SEED)
    unet, text = playground.new_unet(), playground.new_text_model()
    base.train(unet, text, _encode_with(encoder), playground.text_features, folder)
    _ship("unet", unet.state_dict(), steps=base.SCHEDULE.steps)
    _ship("text_encoder", text.state_dict(), steps=base.SCHEDULE.steps)


def train_judge(folder: Path) -> None:
    """The judge, on drawn scenes alone."""
    torch.manual_seed(INITIAL_SEED)
    model = Judge()
    judge.train(model, folder)
    _ship("judge", model.state_dict(), steps=judge.SCHEDULE.steps)


def train_image_encoder(folder: Path) -> None:
    """The image encoder and the text projection, against the finished text encoder."""
    text = playground.new_text_model()
    shipped = playground.read_weights("text_encoder")
    text.load_state_dict({k: v.float() for k, v in shipped.items()})
    text.requires_grad_(False)
    torch.manual_seed(INITIAL_SEED)
    tower = playground.new_image_encoder(image_encoder.CONFIG)
    projection = nn.Linear(playground.CONTEXT_DIM, image_encoder.CONFIG["projection_dim"], bias=False)
    image_encoder.train(tower, projection, playground.image_features, lambda t: playground.pooled_text(text, t), folder)
    _ship("image_encoder", tower.state_dict(), steps=image_encoder.SCHEDULE.steps)
    (playground.ASSETS / "image_encoder.json").write_text(json.dumps(image_encoder.CONFIG, indent=1) + "\n", encoding="ascii")
    shipped["text_projection.weight"] = projection.weight
    _ship("text_encoder", shipped, steps=base.SCHEDULE.steps)


def _shipped(model: nn.Module, name: str) -> nn.Module:
    """A network with its shipped weights, in float32 and frozen."""
    state = {key: value.float() for key, value in playground.read_weights(name).items()}
    model.load_state_dict(state, strict=name != "text_encoder")  # that file may hold the image encoder's projection too
    return model.eval().requires_grad_(False)


def _shipped_encoder() -> Any:
    model = playground.new_autoencoder()
    model.load_state_dict({key: value.float() for key, value in playground.read_weights("vae").items()}, strict=False)
    return _encode_with(model.eval().requires_grad_(False))


def train_ifadapter(folder: Path) -> None:
    """The IFAdapter, on the shipped base."""
    unet, text = _shipped(playground.new_unet(), "unet"), _shipped(playground.new_text_model(), "text_encoder")
    clip = playground.load_clip()
    config = ifadapter_training.playground_config(unet)
    torch.manual_seed(INITIAL_SEED)
    network = IFAdapter(config)

    def phrase_features(phrases):
        found = ifadapter_text.encode(clip, phrases, config, "Playground training")
        return found.hidden, found.eot, found.counts

    ifadapter.train(
        network,
        _shipped_encoder(),
        lambda tokens: playground.text_features(text, tokens),
        phrase_features,
        lambda x, t, context, prepared: ifadapter_training.predicted(unet, config, x, t, context, prepared),
        folder,
    )
    target = playground.IFADAPTER
    target.parent.mkdir(parents=True, exist_ok=True)
    ifadapter_checkpoint.save(target, config, {key: value.half() for key, value in network.state_dict().items()})
    target.chmod(0o644)
    log.info("%s: %.1f MB", target.name, target.stat().st_size / 1e6)


def train_paint_by_example(folder: Path) -> None:
    """Paint by Example, on the shipped base: only what was trained is in the file."""
    torch.manual_seed(INITIAL_SEED)
    nets = paint_by_example_training.playground_networks(_shipped_encoder())
    paint_by_example.train(nets, folder)
    path = paint_by_example_training.ship(nets)
    log.info("%s: %.1f MB", path.name, path.stat().st_size / 1e6)


def main(arguments: list[str]) -> int:
    """`dev.py playground train [STAGE ...]`: train these stages, all by default, in order.

    Checkpoints in `output/playground` resume; a finished stage only writes its file again.
    """
    runs = {
        "autoencoder": train_autoencoder,
        "base": train_base,
        "judge": train_judge,
        "image_encoder": train_image_encoder,
        "ifadapter": train_ifadapter,
        "paint_by_example": train_paint_by_example,
    }
    unknown = [name for name in arguments if name not in runs]
    if unknown:
        log.error("There is no stage %r. The stages are: %s.", unknown[0], ", ".join(runs))
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for stage in arguments or list(runs):
        log.info("playground: %s", stage)
        runs[stage](CHECKPOINTS)
    return 0
