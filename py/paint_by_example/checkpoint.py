"""Files of Paint by Example -> the parts of the model, under one set of names.

Recognised by their keys, never by their name:
- the published checkpoint `model.ckpt` (12.6 GB, two thirds of it optimizer state) and the same weights as safetensors;
- the diffusers layout: the folder, of which any file may be chosen, or single files of it;
- Exemplary's own: safetensors with `unet.*`, `mapper.*`, `tower.*`, `vae.*`, and perhaps the name of a base model in the metadata.

Files are mapped into memory, and parts that are not needed are not read from the disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..weight_files import read_weights
from .model import Config, weight_shapes

FORMAT = "exemplary.paint_by_example"
CHANNELS = 9
PARTS = ("unet", "image_encoder", "vae")
SHOWN = 3  # how many names a message lists

_UNET, _VAE = "model.diffusion_model.", "first_stage_model."
#: The first of these that a file has; diffusers' files of newer versions have the last.
_TOWERS = tuple(
    f"{prefix}embeddings.class_embedding"
    for prefix in ("cond_stage_model.transformer.vision_model.", "model.vision_model.", "model.")
)
_OWN = ("unet", "tower", "mapper", "vae")
_BLOCKS = {  # Exemplary's name -> (the published checkpoint's, diffusers')
    "ln_1": ("ln_1", "norm1"),
    "value": ("attn.c_qkv", "attn1.to_v"),
    "out": ("attn.c_proj", "attn1.to_out.0"),
    "ln_2": ("ln_2", "norm3"),
    "fc": ("mlp.c_fc", "ff.net.0.proj"),
    "proj": ("mlp.c_proj", "ff.net.2"),
}
_KINDS = ("weight", "bias")
#: What trainers put around the weights; torch files with nested dictionaries are read under dotted names.
_WRAPPERS = ("state_dict.", "module.", "model_state_dict.")


@dataclass(frozen=True)
class Contents:
    """The parts of the model in a file; a part that it does not have is empty.

    Args:
        unet: without prefix, under original or diffusers names. In Exemplary's layout possibly a few weights only, for the base named in
            `metadata`.
        tower: of the CLIP vision tower, `embeddings.*`, `encoder.*`, `pre_layrnorm.*`, `post_layernorm.*`.
        mapper: exactly a state dict of `model.ExemplarMapper`.
        vae: as in the file, without prefix.
    """

    unet: dict[str, Tensor] = field(default_factory=dict)
    tower: dict[str, Tensor] = field(default_factory=dict)
    mapper: dict[str, Tensor] = field(default_factory=dict)
    vae: dict[str, Tensor] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    def with_missing_from(self, other: Contents) -> Contents:
        """These parts, and the other's for those that are empty here."""
        return Contents(
            self.unet or other.unet,
            self.tower or other.tower,
            self.mapper or other.mapper,
            self.vae or other.vae,
            {**other.metadata, **self.metadata},
        )


def read(path: str | Path) -> Contents:
    """The parts of a file and, for a file of a diffusers folder, of its neighbours. No code in a file is executed.

    Raises:
        ValueError: the file is damaged, incomplete or of another model; the message says what was found.
    """
    path = Path(path)
    contents = read_file(path)
    for part in PARTS if path.parent.name in PARTS else ():
        if part != path.parent.name and (neighbour := _find_weights(path.parent.parent / part)) is not None:
            contents = contents.with_missing_from(read_file(neighbour))
    return contents


def read_file(path: str | Path) -> Contents:
    """The parts of one file. Raises ValueError as `read`."""
    path = Path(path)
    weights, metadata = read_weights(path)
    try:
        return split_checkpoint(weights, metadata)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def split_checkpoint(weights: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Contents:
    """Sort the weights of a file into parts. Raises ValueError if they are of another model, or incomplete."""
    weights, metadata = _unwrap(weights), dict(metadata or {})
    if metadata.get("format") == FORMAT:
        parts = {
            part: {name.removeprefix(f"{part}."): weights[name] for name in sorted(weights) if name.startswith(f"{part}.")}
            for part in _OWN
        }
        check_mapper(parts["mapper"])
        return Contents(**parts, metadata=metadata)
    is_published, is_diffusers = "learnable_vector" in weights, "uncond_vector" in weights
    contents = Contents(
        unet=_unet(weights),
        tower=_tower(weights),
        mapper=_mapper(weights, is_diffusers) if is_published or is_diffusers else {},
        vae=_vae(weights),
        metadata=metadata,
    )
    if not (contents.unet or contents.mapper or contents.vae):
        raise ValueError(
            f"the file contains {_list_names(sorted(weights)) or 'no weights'}; that is not a part of Paint by Example. "
            f"Choose its model.ckpt, the same as safetensors, or a file of its diffusers folder."
        )
    if contents.unet:
        _check_unet(contents.unet, is_text="cond_stage_model.transformer.text_model.final_layer_norm.weight" in weights)
    return contents


def _unwrap(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if any(name.startswith(wrapper) for name in weights):
            weights = {name.removeprefix(wrapper): weight for name, weight in weights.items() if name.startswith(wrapper)}
    return dict(weights)


def _unet(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if f"{_UNET}input_blocks.0.0.weight" in weights:
        return {name.removeprefix(_UNET): weights[name] for name in sorted(weights) if name.startswith(_UNET)}
    is_diffusers = "conv_in.weight" in weights and "time_embedding.linear_1.weight" in weights
    if "input_blocks.0.0.weight" in weights or is_diffusers:
        return {name: weights[name] for name in sorted(weights)}
    return {}


def _tower(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    first = next((name for name in _TOWERS if name in weights), None)
    if first is None:
        return {}
    prefix = first.removesuffix("embeddings.class_embedding")
    parts = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")
    names = {name.removeprefix(prefix): name for name in sorted(weights) if name.startswith(prefix)}
    return {new: weights[old] for new, old in names.items() if new.startswith(parts) and not new.endswith("position_ids")}


def _vae(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = _VAE if f"{_VAE}decoder.conv_in.weight" in weights else ""
    if f"{prefix}decoder.conv_in.weight" not in weights:
        return {}
    return {name.removeprefix(prefix): weights[name] for name in sorted(weights) if name.startswith(prefix)}


def _mapper(weights: Mapping[str, Tensor], is_diffusers: bool) -> dict[str, Tensor]:
    blocks = "mapper.blocks." if is_diffusers else "cond_stage_model.mapper.resblocks."
    norm = "final_layer_norm" if is_diffusers else "cond_stage_model.final_ln"
    names = {f"{part}.{kind}": f"{of}.{kind}" for part, of in (("final_ln", norm), ("proj_out", "proj_out")) for kind in _KINDS}
    names["null"] = "uncond_vector" if is_diffusers else "learnable_vector"
    count = len({name.removeprefix(blocks).partition(".")[0] for name in weights if name.startswith(blocks)})
    for number in range(count):
        for new, layouts in _BLOCKS.items():
            names |= {f"blocks.{number}.{new}.{k}": f"{blocks}{number}.{layouts[is_diffusers]}.{k}" for k in _KINDS}
    missing = [name for name in names.values() if name not in weights]
    if missing:
        raise ValueError(
            f"{len(missing)} weights of the exemplar encoder are missing ({_list_names(missing)}). Download the file again."
        )
    state = {}
    for new, old in names.items():
        weight = weights[old]
        if old.rpartition(".")[0].endswith("c_qkv"):
            weight = weight[2 * (len(weight) // 3) :]  # queries, keys and values in one: only the values are used
        state[new] = weight
    check_mapper(state)
    return state


def mapper_config(state: Mapping[str, Tensor]) -> Config:
    """The sizes of the mapper with this state dict. Raises ValueError if it is not a mapper's."""
    if "proj_out.weight" not in state or state["proj_out.weight"].ndim != 2:
        raise ValueError("the weights of the exemplar encoder are missing (proj_out.weight).")
    context, width = state["proj_out.weight"].shape
    blocks = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    return Config(width, context, blocks)


def check_mapper(state: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless names and shapes are exactly those of a mapper."""
    needed = weight_shapes(mapper_config(state))
    wrong = [
        f"{name} is {list(state[name].shape) if name in state else 'missing'}, needed is {list(shape)}"
        for name, shape in needed.items()
        if name not in state or tuple(state[name].shape) != shape
    ]
    wrong += [f"{name} does not belong to it" for name in state if name not in needed]
    if wrong:
        raise ValueError(f"the exemplar encoder is damaged: {_list_names(wrong, '; ')}. Download the file again.")


def _check_unet(unet: Mapping[str, Tensor], is_text: bool) -> None:
    first = unet["conv_in.weight" if "conv_in.weight" in unet else "input_blocks.0.0.weight"]
    channels = first.shape[1] if first.ndim == 4 else 0
    if channels != CHANNELS:
        raise ValueError(
            f"this UNet has {channels} input channels, and Paint by Example's has {CHANNELS}. "
            "It is another model; load it with Load Checkpoint or Load Diffusion Model."
        )
    if is_text:
        raise ValueError("this is an inpainting model for text prompts, not for exemplars. Load it with Load Checkpoint.")


def tower_config(tower: Mapping[str, Tensor]) -> dict[str, Any]:
    """The host's configuration of a CLIP vision tower with these weights. Raises ValueError if weights are missing."""
    needed = ("embeddings.class_embedding", "embeddings.patch_embedding.weight", "embeddings.position_embedding.weight")
    missing = [name for name in (*needed, "encoder.layers.0.mlp.fc1.weight") if name not in tower]
    if missing:
        raise ValueError(f"the CLIP tower is incomplete: {_list_names(missing)} is missing. Download the file again.")
    width, channels, patch = tower["embeddings.patch_embedding.weight"].shape[:3]
    patches = tower["embeddings.position_embedding.weight"].shape[0] - 1
    return {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "num_attention_heads": max(1, width // 64),
        "intermediate_size": tower["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "hidden_act": "quick_gelu",
        "num_hidden_layers": 1 + max(int(name.split(".")[2]) for name in tower if name.startswith("encoder.layers.")),
        "image_size": round(patches**0.5) * patch,
        "num_channels": channels,
        "patch_size": patch,
    }


def save(path: str | Path, contents: Contents, dtype: torch.dtype = torch.float16) -> None:
    """Write Exemplary's layout: the parts that there are, and of the UNet what differs from the base that the metadata may name."""
    check_mapper(contents.mapper)
    state = {f"{part}.{name}": weight for part in _OWN for name, weight in getattr(contents, part).items()}
    state = {name: weight.detach().to("cpu", dtype).contiguous() for name, weight in state.items()}
    save_file(state, str(path), metadata={**contents.metadata, "format": FORMAT})


def _find_weights(folder: Path) -> Path | None:
    """The weights of one part of a diffusers folder: safetensors before pickles, the plain name before variants."""
    files = [f for f in folder.glob("*") if f.suffix in (".safetensors", ".bin") and f.is_file()] if folder.is_dir() else []
    return min(files, key=lambda f: (f.suffix != ".safetensors", len(f.name), f.name), default=None)


def _list_names(names: list[str], between: str = ", ") -> str:
    more = len(names) - SHOWN
    return between.join(ascii(name)[1:-1] for name in names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
