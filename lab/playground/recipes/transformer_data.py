"""What the transformer base is trained on: drawn scenes, and for some of their objects another drawing of the same as a reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ....py.playground import portraits
from ....py.playground.canvas import Canvas
from ....py.playground.objects import draw_object
from ....py.playground.scenes import SIDE, draw_scene
from ....py.playground.vocabulary import encode_padded
from ....py.playground.world import BACKDROPS, article, join
from ..dataset import MIX, in_chunks, in_parallel
from ..persons import draw_example

REFERENCE_SIDE = 64
REFERENCES = 2  # at most, per scene
#: The share of referenced objects that the prompt calls only "an object": their class is known from the reference alone.
UNNAMED = 0.3
PERSONS = 5  # every fifth example is a scene with persons and their portraits

Box = tuple[float, float, float, float]


def draw_reference(rng: np.random.Generator, name: str, colour: str, texture: str) -> np.ndarray:
    """A single object on a plain backdrop, [64, 64, 3] uint8: another size, place and phase of its texture than in the scene."""
    backdrop = BACKDROPS[str(rng.choice(list(BACKDROPS)))]
    canvas = Canvas(REFERENCE_SIDE)
    canvas.gradient(backdrop, backdrop, "backdrop")
    radius = float(rng.uniform(0.3, 0.44))
    x, y = (0.5 + float(offset) for offset in rng.uniform(-0.04, 0.04, 2))
    draw_object(canvas, name, colour, texture, (x, y), radius, 1, backdrop, rng)
    return canvas.finish()[0]


def draw_with_references(number: int) -> tuple[np.ndarray, str, str, list[tuple[np.ndarray, Box]], bool]:
    """Training example `number`: image, caption, prompt beside references, [(reference, box of its object)], whether it shows objects."""
    if number % PERSONS == PERSONS - 1:
        return _persons(number)
    kind = MIX[(number // PERSONS * (PERSONS - 1) + number % PERSONS) % len(MIX)]
    scene = draw_scene(kind, number, SIDE)
    if kind != "objects":
        return scene.image, scene.caption, "", [], False
    rng = np.random.default_rng([80, number])
    count = min(len(scene.instances), int(rng.integers(1, REFERENCES + 1)))
    chosen = sorted(rng.choice(len(scene.instances), count, replace=False).tolist())
    phrases, references = [], []
    for index, instance in enumerate(scene.instances):
        if index in chosen:
            drawn = draw_reference(rng, instance.name, instance.attributes["colour"], instance.attributes["texture"])
            references.append((drawn, instance.box))
            phrases.append("an object" if rng.random() < UNNAMED else article(instance.name))
        else:
            phrases.append(instance.phrase)
    references = [references[index] for index in rng.permutation(count)]
    prompt = join(phrases)
    if rng.random() < 0.85:
        prompt += f" on {article(scene.attributes['backdrop'])} background"
    return scene.image, scene.caption, prompt, references, True


def _persons(number: int) -> tuple[np.ndarray, str, str, list[tuple[np.ndarray, Box]], bool]:
    example = draw_example(number // PERSONS)
    scene, rng = example.scene, np.random.default_rng([79, number])
    drawn = [portraits.draw_portrait(rng, REFERENCE_SIDE, person).image for person in example.people]
    boxes = [instance.box for instance in scene.instances]
    if len(boxes) != len(drawn):  # one is hidden by the other
        return scene.image, scene.caption, "", [], False
    return scene.image, scene.caption, example.text, list(zip(drawn, boxes)), False


def load_examples(encode: Callable[[Tensor], Tensor], folder: Path, count: int, chunk: int = 2_000) -> dict[str, Tensor]:
    """The first `count` examples, kept in chunks beside the checkpoints.

    Returns:
        latents [n, 4, 16, 16], references [n, 2, 4, 8, 8], boxes [n, 2, 4], counts [n] of references, tokens and prompt_tokens [n, 77],
        is_objects [n].
    """

    def prepare(first: int, number: int) -> dict[str, Tensor]:
        rows = in_parallel(draw_with_references, list(range(first, first + number)))
        references = torch.zeros(number, REFERENCES, 4, REFERENCE_SIDE // 8, REFERENCE_SIDE // 8, dtype=torch.float16)
        boxes, counts = torch.zeros(number, REFERENCES, 4), torch.zeros(number, dtype=torch.int16)
        places = [(row, index) for row, example in enumerate(rows) for index in range(len(example[3]))]
        for (row, index), latent in zip(places, _latents(encode, [rows[row][3][index][0] for row, index in places])):
            references[row, index] = latent
            boxes[row, index] = torch.tensor(rows[row][3][index][1])
            counts[row] = index + 1
        return {
            "latents": _latents(encode, [example[0] for example in rows]),
            "references": references,
            "boxes": boxes,
            "counts": counts,
            "tokens": torch.tensor(encode_padded(example[1] for example in rows), dtype=torch.int16),
            "prompt_tokens": torch.tensor(encode_padded(example[2] for example in rows), dtype=torch.int16),
            "is_objects": torch.tensor([example[4] for example in rows]),
        }

    chunks = in_chunks(folder, "transformer", 0, count, chunk, prepare)
    return {name: torch.cat([part[name] for part in chunks]) for name in chunks[0]}


@torch.no_grad()
def _latents(encode: Callable[[Tensor], Tensor], images: list[np.ndarray]) -> Tensor:
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return torch.cat([encode(batch.float().div(255)).half() for batch in pixels.split(32)])
