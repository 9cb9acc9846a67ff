"""A tiny Paint by Example of the host's own classes, and the ways to use it that its tests share."""

from __future__ import annotations

import tiny
import torch
from comfy.clip_model import CLIPVision
from pack.py.host import networks
from pack.py.host.paint_by_example import conditioning, loader, prepare
from pack.py.paint_by_example.model import Config, ExemplarMapper


class TinyPBE(tiny.TinySD15):
    unet_config = {**tiny.TinySD15.unet_config, "in_channels": 9}


tiny.SHAPES[TinyPBE] = tiny.SHAPES[tiny.TinySD15]
TOWER = {
    "model_type": "clip_vision_model",
    "hidden_size": 64,
    "num_attention_heads": 1,
    "intermediate_size": 64,
    "hidden_act": "quick_gelu",
    "num_hidden_layers": 2,
    "image_size": 32,
    "num_channels": 3,
    "patch_size": 16,
}


class TinyVAE:
    """8x8 pixels are a cell: three means and their mean."""

    def encode(self, pixels):
        means = torch.nn.functional.avg_pool2d(pixels[..., :3].movedim(-1, 1), 8) * 2 - 1
        return torch.cat([means, means.mean(dim=1, keepdim=True)], dim=1)

    def decode(self, latent):
        return torch.nn.functional.interpolate(latent[:, :3], scale_factor=8).movedim(1, -1).clamp(-1, 1) / 2 + 0.5


VAE = TinyVAE()


def randomised(network, seed):
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=rng) * (0.5 if p.ndim == 1 else 0.2) for name, p in network.state_dict().items()}


def tiny_model():
    """A nine-channel MODEL as the loader gives it."""
    return loader.configure_model(tiny.tiny_model(TinyPBE))


def tiny_encoder():
    """An exemplar encoder with a random tower of two layers."""
    config = Config(64, 64, 1)
    tower = networks.load(
        lambda **how: CLIPVision(TOWER, how["dtype"], how["device"], how["operations"]),
        randomised(CLIPVision(TOWER, torch.float32, None, torch.nn), 1),
    )
    mapper = networks.load(ExemplarMapper, randomised(ExemplarMapper(config), 2), config)
    return conditioning.ExemplarEncoder(tower, tower.model, mapper, 32)


def pictures(count=1, h=64, w=64, seed=0, channels=3):
    return torch.rand(count, h, w, channels, generator=torch.Generator().manual_seed(seed))


def hole(h=64, w=64, y0=16, y1=40, x0=16, x1=48):
    mask = torch.zeros(1, h, w)
    mask[:, y0:y1, x0:x1] = 1
    return mask


WHOLE = {"width": 64, "height": 64, "crop": "whole picture", "grow": 0, "feather": 0}


def prepared(encoder, image=None, mask=None, exemplar=None, conditioned=None, **more):
    positive, negative = conditioned or conditioning.make_conditioning(
        encoder, pictures(seed=7) if exemplar is None else exemplar
    )
    return prepare.prepare(
        positive,
        negative,
        VAE,
        pictures() if image is None else image,
        hole() if mask is None else mask,
        **{**WHOLE, **more},
    )


def sample(model, ready, **more):
    positive, negative, latent, _ = ready
    size, batch = latent["samples"].shape[-2:], len(latent["samples"])
    return tiny.sample(model, positive, negative, size=tuple(size), **{"batch": batch, **more})
