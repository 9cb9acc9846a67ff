"""Names of a Stable Diffusion UNet's weights: from the diffusers layout to that of the original code, at any depth."""

from __future__ import annotations

import re
from collections.abc import Iterable

_PLAIN = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


def original_names(names: Iterable[str]) -> dict[str, str]:
    """{diffusers name: original name} of the weights that a Stable Diffusion 1.x UNet has; others are left out."""
    names = list(names)
    depth = 1 + max((int(m[1]) for n in names if (m := re.match(r"down_blocks\.0\.resnets\.(\d+)\.", n))), default=-1)
    attended = {int(m[1]) for n in names if (m := re.match(r"up_blocks\.(\d+)\.attentions\.", n))}
    found = {}
    for name in names:
        plain = next((key for key in _PLAIN if name.startswith(f"{key}.")), None)
        block = _BLOCK.fullmatch(name)
        if plain is not None:
            rest = name[len(plain) + 1 :]
            found[name] = f"{_PLAIN[plain]}.{_inside(rest) if 'resnets' in plain else rest}"
        elif block is not None:
            found[name] = _placed(block, depth, attended)
    return found


def _placed(block: re.Match, depth: int, attended: set[int]) -> str:
    side, level, kind, number, rest = block[1], int(block[2]), block[3], int(block[4]), block[5]
    if side == "down":
        first = 1 + level * (depth + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + depth}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{first + number}." + (f"0.{_inside(rest)}" if kind == "resnets" else f"1.{rest}")
    first = level * (depth + 1)
    if kind == "upsamplers":
        return f"output_blocks.{first + depth}.{2 if level in attended else 1}.{rest}"
    return f"output_blocks.{first + number}." + (f"0.{_inside(rest)}" if kind == "resnets" else f"1.{rest}")


def _inside(rest: str) -> str:
    layer, dot, weight = rest.partition(".")
    return f"{_RESNET.get(layer, layer)}{dot}{weight}"
