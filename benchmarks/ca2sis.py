"""CA2-SIS: encoding and drawing a face at 256x256 against the textbook form, an edit against the whole, and what the attention patch costs.

The textbook form builds what ours never does: every attention table (queries x keys x heads, softmax, product), and the wide map of every
feed-forward at once. Weights of the published size, random, float32, batch 1; both give the same image. Time is processor time on one
thread, memory the growth of the process while it runs. The patch is on a full-size SD1.5 UNet at 512x512 with eight classes.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import comfy.supported_models
import torch
from einops import rearrange
from pack.benchmarks.measure import STATM, at_most, one_thread, peak_growth, seconds
from pack.py.ca2sis import codes, model
from pack.py.ca2sis.model import Config, Generator
from pack.py.host.ca2sis import attention as ca2sis_attention
from pack.py.semantic.palettes import named_palette
from pack.py.semantic.semantic_map import SemanticMap
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
MOST_TIME, MOST_MEMORY, MOST_STEP = 0.5, 0.35, 1.3
CLASSES = ("backdrop", "sky", "grass", "road", "house", "tree", "car", "person")


def figures(quick: bool) -> Iterator[dict]:
    """Every figure; `quick` repeats less and uses an image of 256x256 for the patch."""
    with one_thread():
        with torch.no_grad():
            yield from _generator(1 if quick else 3)
        yield _patch(1 if quick else 3, 256 if quick else 512)


def _generator(repeats: int) -> Iterator[dict]:
    generator = _random(Generator(Config(), device="meta").to_empty(device="cpu").eval().requires_grad_(False))
    image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1
    blocks = torch.randint(0, 19, (1, 16, 16), generator=torch.Generator().manual_seed(1))
    mask = codes.one_hot(blocks.repeat_interleave(16, 1).repeat_interleave(16, 2), 19)
    shape, style = generator.encode_shape(mask), generator.encode_style(image, mask)

    def ours() -> Tensor:
        return generator(image, mask)

    def textbook() -> Tensor:
        kept = model.attend, model.folding_is_faster, model.SLICE
        model.attend, model.folding_is_faster, model.SLICE = _table_attention, lambda *_: False, 1 << 40
        try:
            return generator(image, mask)
        finally:
            model.attend, model.folding_is_faster, model.SLICE = kept

    torch.testing.assert_close(ours(), textbook(), rtol=1e-3, atol=1e-3)
    whole, plain = zip(*((seconds(ours), seconds(textbook)) for _ in range(repeats)))  # in turns: the machine's mood meets both
    name = "CA2-SIS, encode and draw at 256x256"
    yield at_most(f"{name}, time against the textbook form", statistics.median(whole) / statistics.median(plain), "x", MOST_TIME)
    if STATM.exists():
        grown = [peak_growth(call)[0] for call in (ours, textbook)]
        yield at_most(f"{name}, peak memory against the textbook form", grown[0] / grown[1], "x", MOST_MEMORY)
    again = statistics.median(seconds(lambda: generator.decode(shape, style)) for _ in range(repeats))
    yield {
        "name": "an edited style with cached codes, against encode and draw",
        "value": again / statistics.median(whole),
        "unit": "x",
    }


def _patch(pairs: int, side: int) -> dict:
    sys.path[:0] = [str(ROOT / "tests" / "host")]
    import tiny

    class FullSD15(comfy.supported_models.SD15):
        pass

    tiny.SHAPES[FullSD15] = {
        "channel_mult": [1, 2, 4, 4],
        "num_res_blocks": [2, 2, 2, 2],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "transformer_depth_middle": 1,
    }
    plain, palette, prompts = tiny.tiny_model(FullSD15), named_palette("playground"), None
    for name in CLASSES:
        prompts = ca2sis_attention.class_prompt(name, tiny.conditioning(plain, f"a {name}"), prompts=prompts)
    labels = torch.tensor([palette.label(name, "classes") for name in CLASSES]).view(1, 2, 4)
    semantic_map = SemanticMap(labels.repeat_interleave(side // 2, 1).repeat_interleave(side // 4, 2), palette)
    patched = ca2sis_attention.apply(plain, semantic_map, prompts)
    times: list[list[float]] = [[], []]
    for _ in range(pairs):
        for found, unet in zip(times, (patched, plain)):
            found.append(seconds(lambda: tiny.sample(unet, steps=1, size=(side // 8, side // 8))))
    ratio = statistics.median(times[0]) / statistics.median(times[1])
    return at_most(
        f"class-adaptive attention, {len(CLASSES)} classes, SD1.5 at {side}x{side}, a step against the plain one",
        ratio,
        "x",
        MOST_STEP,
    )


def _table_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (rearrange(t, "b l (n d) -> b n l d", n=heads) for t in (q, k, v))
    table = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
    return rearrange(table @ v, "b n l d -> b l (n d)")


def _random(generator: Generator) -> Generator:
    source = torch.Generator().manual_seed(0)
    for name, value in generator.state_dict().items():
        if value.ndim > 1:
            value.normal_(std=value[0].numel() ** -0.5, generator=source)
        else:
            value.normal_(mean=float(name.endswith("weight")), std=0.1, generator=source)
    return generator
