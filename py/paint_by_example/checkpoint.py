"""Files of Paint by Example -> the parts that are needed of them, under one set of names.

Read are, by keys and never by name:
- the published checkpoint `model.ckpt` (12.6 GB, two thirds of it an optimizer's) and the same weights as safetensors;
- the diffusers layout: the folder, of which any file may be chosen, or single files of it;
- our own: safetensors with `unet.*`, `mapper.*`, `tower.*`, `vae.*`; in the metadata perhaps a base model that the rest comes from.

Files are mapped into memory, and of a part that is not needed nothing is ever read from the disk.
"""

from __future__ import annotations

import _codecs
import pickle
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .model import Config, shapes
from .unet_names import original_names

FORMAT = "exemplary.paint_by_example"
CHANNELS = 9
PARTS = ("unet", "image_encoder", "vae")
SHOWN = 3  # how many names a message lists

_UNET, _VAE = "model.diffusion_model.", "first_stage_model."
#: The first that is there; diffusers' files of newer versions have the last.
_TOWERS = tuple(
    f"{prefix}embeddings.class_embedding"
    for prefix in ("cond_stage_model.transformer.vision_model.", "model.vision_model.", "model.")
)
_OWN = ("unet", "tower", "mapper", "vae")
_BLOCKS = {  # ours -> (the published checkpoint's, diffusers')
    "ln_1": ("ln_1", "norm1"),
    "value": ("attn.c_qkv", "attn1.to_v"),
    "out": ("attn.c_proj", "attn1.to_out.0"),
    "ln_2": ("ln_2", "norm3"),
    "fc": ("mlp.c_fc", "ff.net.0.proj"),
    "proj": ("mlp.c_proj", "ff.net.2"),
}


@dataclass(frozen=True)
class Contents:
    """What a file has of the model; a part that it does not have is empty.

    Args:
        unet: original names without prefix. Of our own layout possibly a few weights only, for the base named in `metadata`.
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
        """These parts, and the other's where this has none."""
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
        ValueError: the file is damaged, incomplete or of something else; says what was found.
    """
    path = Path(path)
    found = read_file(path)
    for part in PARTS if path.parent.name in PARTS else ():
        if part != path.parent.name and (neighbour := _weights_in(path.parent.parent / part)) is not None:
            found = found.with_missing_from(read_file(neighbour))
    return found


def read_file(path: str | Path) -> Contents:
    """The parts of one file alone. Raises ValueError as `read`."""
    path = Path(path)
    names, get, metadata = _opened(path)
    try:
        return understood(names, get, metadata)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
    except (OSError, RuntimeError, SafetensorError) as error:
        raise _unreadable(path, error) from None


def understood(names: Iterable[str], get: Callable[[str], Tensor], metadata: Mapping[str, str] | None = None) -> Contents:
    """Sort weights by what they belong to; `get` is called for those that are needed only."""
    names, metadata = set(names), dict(metadata or {})
    if metadata.get("format") == FORMAT:
        parts = {
            part: {name.removeprefix(f"{part}."): get(name) for name in sorted(names) if name.startswith(f"{part}.")}
            for part in _OWN
        }
        check_mapper(parts["mapper"])
        return Contents(**parts, metadata=metadata)
    published, diffusers = "learnable_vector" in names, "uncond_vector" in names
    found = Contents(
        unet=_unet(names, get),
        tower=_tower(names, get),
        mapper=_mapper(names, get, diffusers) if published or diffusers else {},
        vae=_vae(names, get),
        metadata=metadata,
    )
    if not (found.unet or found.mapper or found.vae):
        raise ValueError(f"the file holds {_some(sorted(names)) or 'nothing'}; that is no part of Paint by Example.")
    if found.unet:
        _check_unet(found.unet, text="cond_stage_model.transformer.text_model.final_layer_norm.weight" in names)
    return found


def _unet(names: set[str], get: Callable[[str], Tensor]) -> dict[str, Tensor]:
    if f"{_UNET}input_blocks.0.0.weight" in names:
        return {name.removeprefix(_UNET): get(name) for name in sorted(names) if name.startswith(_UNET)}
    if "input_blocks.0.0.weight" in names:
        return {name: get(name) for name in sorted(names)}
    if "conv_in.weight" in names and "time_embedding.linear_1.weight" in names:
        return {target: get(name) for name, target in original_names(sorted(names)).items()}
    return {}


def _tower(names: set[str], get: Callable[[str], Tensor]) -> dict[str, Tensor]:
    first = next((name for name in _TOWERS if name in names), None)
    if first is None:
        return {}
    prefix = first.removesuffix("embeddings.class_embedding")
    parts = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")
    found = {name.removeprefix(prefix): name for name in sorted(names) if name.startswith(prefix)}
    return {ours: get(name) for ours, name in found.items() if ours.startswith(parts) and not ours.endswith("position_ids")}


def _vae(names: set[str], get: Callable[[str], Tensor]) -> dict[str, Tensor]:
    prefix = _VAE if f"{_VAE}decoder.conv_in.weight" in names else ""
    if f"{prefix}decoder.conv_in.weight" not in names:
        return {}
    return {name.removeprefix(prefix): get(name) for name in sorted(names) if name.startswith(prefix)}


def _mapper(names: set[str], get: Callable[[str], Tensor], diffusers: bool) -> dict[str, Tensor]:
    blocks = "mapper.blocks." if diffusers else "cond_stage_model.mapper.resblocks."
    norm = "final_layer_norm" if diffusers else "cond_stage_model.final_ln"
    wanted = {f"{part}.{kind}": f"{of}.{kind}" for part, of in (("final_ln", norm), ("proj_out", "proj_out")) for kind in _KINDS}
    wanted["null"] = "uncond_vector" if diffusers else "learnable_vector"
    count = len({name.removeprefix(blocks).partition(".")[0] for name in names if name.startswith(blocks)})
    for number in range(count):
        for ours, theirs in _BLOCKS.items():
            wanted |= {f"blocks.{number}.{ours}.{k}": f"{blocks}{number}.{theirs[diffusers]}.{k}" for k in _KINDS}
    missing = [name for name in wanted.values() if name not in names]
    if missing:
        raise ValueError(f"{len(missing)} weights of the exemplar encoder are missing ({_some(missing)}). Download it again.")
    state = {}
    for ours, name in wanted.items():
        weight = get(name)
        if name.rpartition(".")[0].endswith("c_qkv"):
            weight = weight[2 * (len(weight) // 3) :]  # of queries, keys and values the values
        state[ours] = weight
    check_mapper(state)
    return state


_KINDS = ("weight", "bias")


def mapper_config(state: Mapping[str, Tensor]) -> Config:
    """The sizes of the mapper that a state dict is of. Raises ValueError if it is of none."""
    if "proj_out.weight" not in state or state["proj_out.weight"].ndim != 2:
        raise ValueError("the weights of the exemplar encoder are missing (proj_out.weight).")
    context, width = state["proj_out.weight"].shape
    blocks = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    return Config(width, context, blocks)


def check_mapper(state: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless names and shapes are exactly those of a mapper."""
    needed = shapes(mapper_config(state))
    wrong = [
        f"{name} is {list(state[name].shape) if name in state else 'missing'}, needed is {list(shape)}"
        for name, shape in needed.items()
        if name not in state or tuple(state[name].shape) != shape
    ]
    wrong += [f"{name} does not belong to it" for name in state if name not in needed]
    if wrong:
        raise ValueError(f"the exemplar encoder is damaged: {_some(wrong, '; ')}. Download it again.")


def _check_unet(unet: Mapping[str, Tensor], text: bool) -> None:
    found = unet["input_blocks.0.0.weight"].shape[1]
    if found != CHANNELS:
        raise ValueError(
            f"this UNet reads {found} channels, and Paint by Example's reads {CHANNELS}. It is an ordinary model; load it with the host's loader."
        )
    if text:
        raise ValueError("this is an inpainting model for texts, not for exemplars. Load it with the host's checkpoint loader.")


def tower_config(tower: Mapping[str, Tensor]) -> dict[str, Any]:
    """The description of a CLIP vision tower by its weights, as the host wants it. Raises ValueError if weights are missing."""
    needed = ("embeddings.class_embedding", "embeddings.patch_embedding.weight", "embeddings.position_embedding.weight")
    missing = [name for name in (*needed, "encoder.layers.0.mlp.fc1.weight") if name not in tower]
    if missing:
        raise ValueError(f"the CLIP tower is incomplete: {_some(missing)} is missing. Download it again.")
    width, channels, patch = tower["embeddings.patch_embedding.weight"].shape[:3]
    places = tower["embeddings.position_embedding.weight"].shape[0] - 1
    return {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "num_attention_heads": max(1, width // 64),
        "intermediate_size": tower["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "hidden_act": "quick_gelu",
        "num_hidden_layers": 1 + max(int(name.split(".")[2]) for name in tower if name.startswith("encoder.layers.")),
        "image_size": round(places**0.5) * patch,
        "num_channels": channels,
        "patch_size": patch,
    }


def save(path: str | Path, contents: Contents, dtype: torch.dtype = torch.float16) -> None:
    """Write our own layout: the parts that are there, and of the UNet what differs from the base that the metadata may name."""
    check_mapper(contents.mapper)
    state = {f"{part}.{name}": weight for part in _OWN for name, weight in getattr(contents, part).items()}
    state = {name: weight.detach().to("cpu", dtype).contiguous() for name, weight in state.items()}
    save_file(state, str(path), metadata={**contents.metadata, "format": FORMAT})


def _weights_in(folder: Path) -> Path | None:
    """The weights of one part of a diffusers folder: safetensors before pickles, the plain name before variants."""
    files = [f for f in folder.glob("*") if f.suffix in (".safetensors", ".bin") and f.is_file()] if folder.is_dir() else []
    return min(files, key=lambda f: (f.suffix != ".safetensors", len(f.name), f.name), default=None)


def _opened(path: Path) -> tuple[Iterable[str], Callable[[str], Tensor], Mapping[str, str]]:
    """Names, a getter that reads one tensor, metadata."""
    try:
        if path.suffix.lower() in (".safetensors", ".sft"):
            file = safe_open(path, "pt")
            return list(file.keys()), file.get_tensor, file.metadata() or {}
        weights = _unpickled(path)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path.name} is damaged or holds more than weights, and was not loaded ({_first_line(error)})."
        ) from None
    except (OSError, EOFError, RuntimeError, SafetensorError) as error:
        raise _unreadable(path, error) from None
    if isinstance(weights, Mapping) and isinstance(weights.get("state_dict"), Mapping):
        weights = weights["state_dict"]
    if not isinstance(weights, Mapping):
        raise ValueError(f"{path.name} holds a {type(weights).__name__}, not weights.")
    weights = {str(name): weight for name, weight in weights.items() if isinstance(weight, Tensor)}
    return list(weights), weights.__getitem__, {}


class _ModelCheckpoint:
    """Stands in for the training library's object of this name, which the published checkpoint mentions."""


def _unpickled(path: Path) -> Any:
    scalar = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")]
    known: list[Any] = [
        (_ModelCheckpoint, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        (np.dtype, "numpy.dtype"),
        (_codecs.encode, "_codecs.encode"),
        *dtypes,
    ]
    # Before torch 2.5 the host's own list of harmless objects holds.
    allowed = torch.serialization.safe_globals(known) if hasattr(torch.serialization, "safe_globals") else nullcontext()
    with allowed:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # the file format of torch before 1.6


def _unreadable(path: Path, error: BaseException) -> ValueError:
    return ValueError(
        f"{path.name} cannot be read, as if it were not downloaded whole ({_first_line(error)}). Download it again."
    )


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else "it ends early"


def _some(names: list[str], between: str = ", ") -> str:
    more = len(names) - SHOWN
    return between.join(ascii(name)[1:-1] for name in names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
