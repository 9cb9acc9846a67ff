"""Trains the playground's models in order and writes the files that ship. `dev.py playground train` runs `main`."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch
from torch import nn

from ...py.host import playground, playground_transformer
from ...py.playground.detector import SceneDetector
from .adapters import STAGES
from .export import INITIAL_SEED, encode_with, finished, finished_encoder, ship
from .recipes import autoencoder, base, detector, image_encoder, transformer, transformer_network

log = logging.getLogger("exemplary")

CHECKPOINTS = playground.ASSETS.parents[1] / "output" / "playground"


def _trained_autoencoder(folder: Path) -> nn.Module:
    torch.manual_seed(INITIAL_SEED)
    model = playground.new_autoencoder()
    autoencoder.train(model, folder)
    return model


def train_autoencoder(folder: Path) -> None:
    """The VAE."""
    state = _trained_autoencoder(folder).state_dict()
    ship(
        "vae",
        {k: v for k, v in state.items() if k.startswith("taesd_")},
        steps=autoencoder.SCHEDULE.steps + autoencoder.FINISH.steps,
    )


def train_base(folder: Path) -> None:
    """UNet and text encoder, on the latents of the finished VAE."""
    encoder = _trained_autoencoder(folder)  # resumed at its end: loads the finished checkpoint
    torch.manual_seed(INITIAL_SEED)
    unet, text = playground.new_unet(), playground.new_text_model()
    base.train(unet, text, encode_with(encoder), playground.text_features, folder)
    ship("unet", unet.state_dict(), steps=base.SCHEDULE.steps)
    ship("text_encoder", text.state_dict(), steps=base.SCHEDULE.steps)


def train_transformer(folder: Path) -> None:
    """The transformer base, on the latents of the finished VAE, with the finished text encoder."""
    torch.manual_seed(INITIAL_SEED)
    config = {key: value for key, value in playground_transformer.NETWORK_CONFIG.items() if key != "image_model"}
    network = transformer_network.new_network(config)
    text = finished(playground.new_text_model(), "text_encoder")
    transformer.train(network, lambda tokens: playground.text_features(text, tokens), finished_encoder(), folder)
    ship(playground_transformer.FILE, network.state_dict(), steps=transformer.SCHEDULE.steps)


def train_detector(folder: Path) -> None:
    """The detector, on drawn scenes alone."""
    torch.manual_seed(INITIAL_SEED)
    model = SceneDetector()
    detector.train(model, folder)
    ship("judge", model.state_dict(), steps=detector.SCHEDULE.steps)


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
    ship("image_encoder", tower.state_dict(), steps=image_encoder.SCHEDULE.steps)
    (playground.ASSETS / "image_encoder.json").write_text(json.dumps(image_encoder.CONFIG, indent=1) + "\n", encoding="ascii")
    shipped["text_projection.weight"] = projection.weight
    ship("text_encoder", shipped, steps=base.SCHEDULE.steps)


def main(arguments: list[str]) -> int:
    """`dev.py playground train [STAGE ...]`: train these stages, all by default, in order.

    Checkpoints in `output/playground` resume; a finished stage only writes its file again.
    """
    runs = {
        "autoencoder": train_autoencoder,
        "base": train_base,
        "transformer": train_transformer,
        "detector": train_detector,
        "image_encoder": train_image_encoder,
        **STAGES,
    }
    unknown = [name for name in arguments if name not in runs]
    if unknown:
        log.error("There is no stage %r. The stages are: %s.", unknown[0], ", ".join(runs))
        return 2
    for stage in arguments or list(runs):
        log.info("playground: %s", stage)
        runs[stage](CHECKPOINTS)
    return 0
