"""The image encoder: a CLIP vision tower against the base model's frozen text encoder, on whole scenes and on crops of single objects.

The contrast (CLIP, arXiv 2103.00020) is between an image and its phrase; equal phrases in a batch all count as right. Small linear heads,
dropped afterwards, ask for each attribute by name, so that no colour is lost in the average.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....py.playground import world
from ....py.playground.scene import Instance, Scene
from ....py.playground.vocabulary import encode_padded
from ...training.loop import Schedule, fit
from ..dataset import draw_many, training_keys

SCENES = 9000
NAMED = 1.0  # weight of each attribute's loss beside the contrast
WHITE = 0.25  # of the single objects: what tells their class is a faint line only, so that it is learned last
FIRST = 600_000
BATCH = 64
SCHEDULE = Schedule(
    steps=3600, learning_rate=1e-3, warmup=100, final_rate=0.02, weight_decay=0.05, ema=0.995, checkpoint_every=200, seed=14
)
MEAN = (0.48145466, 0.4578275, 0.40821073)  # what the host's CLIP vision preprocessing subtracts, and divides by
STD = (0.26862954, 0.26130258, 0.27577711)
CONFIG: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 192,
    "num_attention_heads": 4,
    "intermediate_size": 768,
    "hidden_act": "quick_gelu",
    "num_hidden_layers": 6,
    "image_size": 128,
    "num_channels": 3,
    "patch_size": 16,
    "projection_dim": 128,
}
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "name": world.CLASS_NAMES,
    "colour": tuple(world.COLOURS),
    "texture": world.TEXTURES,
    "skin": tuple(world.SKINS),
    "hair": tuple(world.HAIRS),
    "style": world.HAIR_STYLES,
    "eyes": tuple(world.EYES),
    "shirt": tuple(world.COLOURS),
    "glasses": ("no", "yes"),
}

ImageFeatures = Callable[[nn.Module, Tensor], Tensor]  # normalised pixels [b, 3, 128, 128] -> embeddings [b, 128]
TextEmbeddings = Callable[[Tensor], Tensor]  # tokens [b, 77] -> embeddings [b, 128]


def normalise(images: Tensor) -> Tensor:
    """Images [b, 3, h, w] in 0..1 as the tower reads them."""
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def crop_of(scene: Scene, box: tuple[float, float, float, float], rng: np.random.Generator) -> Tensor:
    """A square crop around a box with 0 to 35 % room on each side, resized to the scene's size: [3, h, w] in 0..1."""
    side = scene.image.shape[0]
    half = max(box[2] - box[0], box[3] - box[1]) * side * (0.5 + rng.uniform(0.0, 0.35))
    cx, cy = (box[0] + box[2]) / 2 * side, (box[1] + box[3]) / 2 * side
    x0, y0 = (int(np.clip(v - half, 0, side - 8)) for v in (cx, cy))
    x1, y1 = (int(np.clip(v + half, low + 8, side)) for v, low in ((cx, x0), (cy, y0)))
    return _stretched(scene, x0, y0, x1, y1)


def squashed(scene: Scene, box: tuple[float, float, float, float], rng: np.random.Generator) -> Tensor:
    """A box with hardly any room, mirrored half of the time, stretched to a square, as exemplars are: [3, h, w] in 0..1."""
    side = scene.image.shape[0]
    x0, y0 = (max(0, int((v - rng.uniform(0.0, 0.04)) * side)) for v in box[:2])
    x1, y1 = (min(side, int((v + rng.uniform(0.0, 0.04)) * side) + 1) for v in box[2:])
    crop = _stretched(scene, x0, y0, x1, y1)
    return crop.flip(-1) if rng.random() < 0.5 else crop


def _stretched(scene: Scene, x0: int, y0: int, x1: int, y1: int) -> Tensor:
    """A window of whole pixels in the scene's size."""
    crop = torch.from_numpy(scene.image[y0:y1, x0:x1].copy()).permute(2, 0, 1)[None].float() / 255
    return F.interpolate(crop, size=scene.image.shape[:2], mode="bilinear", antialias=True)[0]


def white_things(scenes: list[Scene]) -> list[tuple[Scene, Instance]]:
    """The white objects of scenes of objects."""
    return [(s, t) for s in scenes if s.kind == "objects" for t in s.instances if t.attributes["colour"] == "white"]


def sample(
    scenes: list[Scene], white: list[tuple[Scene, Instance]], rng: np.random.Generator
) -> tuple[Tensor, str, dict[str, str]]:
    """An image, its phrase and what is known about it: one instance (75 %), stretched or with room around it, or a whole scene."""
    scene = scenes[int(rng.integers(len(scenes)))]
    if scene.instances and rng.random() < 0.75:
        thing = scene.instances[int(rng.integers(len(scene.instances)))]
        if white and rng.random() < WHITE:
            scene, thing = white[int(rng.integers(len(white)))]
        cut = squashed if rng.random() < 0.6 else crop_of
        return cut(scene, thing.box, rng), thing.phrase, {"name": thing.name, **thing.attributes}
    whole = torch.from_numpy(scene.image).permute(2, 0, 1).float() / 255
    known = {"name": scene.instances[0].name, **scene.instances[0].attributes} if len(scene.instances) == 1 else {}
    return whole, scene.caption, known


def contrast(image: Tensor, text: Tensor, same: Tensor, scale: Tensor) -> Tensor:
    """The symmetric contrastive loss; `same` [b, b] marks the pairs whose phrases are equal."""
    logits = scale.exp().clamp(max=100) * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    wanted = same.float() / same.float().sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted)) / 2


def train(
    tower: nn.Module,
    projection: nn.Module,
    image_features: ImageFeatures,
    pooled_text: TextEmbeddings,
    folder: Path,
    schedule: Schedule = SCHEDULE,
) -> None:
    """Train the vision tower and the text projection in place; `pooled_text` gives the frozen text encoder's pooled state."""
    scenes = draw_many(training_keys(SCENES, FIRST))
    white = white_things(scenes)
    heads = nn.ModuleDict({name: nn.Linear(CONFIG["projection_dim"], len(words)) for name, words in ATTRIBUTES.items()})
    scale = nn.Parameter(torch.tensor(3.0))
    heads.register_parameter("scale", scale)

    def loss(_: int, rng: torch.Generator) -> Tensor:
        numbers = np.random.default_rng(int(torch.randint(1 << 62, (1,), generator=rng)))
        images, phrases, known = zip(*(sample(scenes, white, numbers) for _ in range(BATCH)))
        tokens = torch.tensor(encode_padded(phrases))
        embeddings = image_features(tower, normalise(torch.stack(images))).float()
        text = projection(pooled_text(tokens)).float()
        same = (tokens[:, None] == tokens[None]).all(dim=-1)
        total = contrast(embeddings, text, same, scale)
        for name, words in ATTRIBUTES.items():
            target = torch.tensor([words.index(k[name]) if k.get(name) in words else -100 for k in known])
            if (target >= 0).any():
                total = total + NAMED * F.cross_entropy(heads[name](embeddings).float(), target, ignore_index=-100)
        return total

    fit("image_encoder", {"tower": tower, "projection": projection, "heads": heads}, loss, schedule, folder)
