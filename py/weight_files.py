"""Reading weight files: safetensors and torch's own formats, recognised by their first bytes, never by the file's name.

Nothing in a file is executed: pickles are read with torch's weights-only unpickler. A file that is not a complete weight file is
refused with a message that says what it is instead (an empty file, a Git LFS pointer, a web page, an incomplete download, an archive, a
pickle that contains more than weights) and what to do. Memory is bounded by the size of the file.
"""

from __future__ import annotations

import json
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

AGAIN = "Download it again."
ITSELF = "Download the file itself, not the page about it."
#: The safetensors format's own limit.
MOST_HEADER_BYTES = 100_000_000
#: How often tensors may share the bytes of a file; a few bytes can claim to be any number of large tensors.
MOST_SHARING = 8
#: First bytes of files that people save in place of weights -> what they are, and what to do.
SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"GGUF", "it is a GGUF file", "Take the safetensors or .bin file of the same weights."),
    (b"\x1f\x8b", "it is a gzip archive", "Unpack it and take the weights inside."),
    (b"7z\xbc\xaf\x27\x1c", "it is a 7z archive", "Unpack it and take the weights inside."),
    (b"Rar!", "it is a RAR archive", "Unpack it and take the weights inside."),
    (b"\x89PNG", "it is a PNG image", "Choose the file that contains the weights."),
    (b"\xff\xd8\xff", "it is a JPEG image", "Choose the file that contains the weights."),
    (b"%PDF", "it is a PDF document", "Choose the file that contains the weights."),
    (b"\x89HDF", "it is an HDF5 file", "Take the safetensors or .bin file of the same weights."),
)
_LFS = b"version https://git-lfs.github.com/spec/"
_TEXT = bytes({7, 8, 9, 10, 12, 13, 27} | set(range(0x20, 0x7F)))
_GLOBAL = re.compile(r"GLOBAL (\w+(?:\.\w+)+)")


class WeightFile(NamedTuple):
    """tensors: name -> tensor on the CPU, nested dictionaries under dotted names. metadata: of a safetensors file, else {}."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


class WeightFileError(ValueError):
    """A file that is not a readable weight file. The message names the file, what it is and what to do."""


class _Bookkeeping:
    """An inert replacement for the objects that training programs save beside the weights. It keeps nothing and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Bookkeeping:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


#: Classes that published checkpoints mention and that are never needed; each is read as `_Bookkeeping`.
BOOKKEEPING = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib.PurePosixPath",
    "pathlib._local.PosixPath",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
)


def read_weights(path: str | Path) -> WeightFile:
    """Read a weight file onto the CPU, memory-mapped where its format allows.

    Raises:
        WeightFileError: no weight file, a damaged one, or one that contains more than weights.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(4096)
        container = _container(path, head, size)
        if container == "safetensors":
            found = _read_safetensors(path)
        else:
            found = WeightFile(dict(_flatten(_read_pickle(path, container))), {})
    except WeightFileError:
        raise
    except (OSError, RuntimeError, MemoryError) as error:
        # RuntimeError: torch and safetensors raise it for what a damaged file makes them do. Their text is not for users.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is damaged"
        raise unreadable(path.name, reason) from error
    _check_tensors(found.tensors, path.name, size)
    return found


def unreadable(name: str, reason: str, remedy: str = AGAIN) -> WeightFileError:
    """The error for the file `name`; `reason` completes "cannot be read as weights: ..."."""
    return WeightFileError(f"{name} cannot be read as weights: {reason}. {remedy}")


def check_values(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise a WeightFileError unless all weights are finite floating point numbers. `name` begins the message."""
    for key, tensor in tensors.items():
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise WeightFileError(f"{name}: the weight {key!a} has values of type {kind}; weights are floating point. {AGAIN}")
        values = tensor.half() if tensor.element_size() == 1 else tensor
        if not bool(values.sum(dtype=torch.promote_types(values.dtype, torch.float32)).isfinite()):
            raise WeightFileError(f"{name}: the weight {key!a} contains NaN or infinite values, so the file is damaged. {AGAIN}")


def _container(path: Path, head: bytes, size: int) -> str:
    """ "safetensors", "zip" or "pickle". Raises WeightFileError for everything else."""
    if size == 0:
        raise unreadable(path.name, "it is empty (0 bytes)")
    if head.startswith(_LFS):
        whole = re.search(rb"\nsize (\d+)", head)
        of = f" of the weights ({int(whole[1]):,} bytes)" if whole else ""
        raise unreadable(path.name, f"it is only a Git LFS pointer{of}", "Run `git lfs pull`, or download the file itself.")
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")):
        raise unreadable(path.name, "it is a web page", ITSELF)
    for signature, what, remedy in SIGNATURES:
        if head.startswith(signature):
            raise unreadable(path.name, what, remedy)
    if head.startswith(b"PK\x03\x04"):
        _check_zip(path, size)
        return "zip"
    if _looks_like_safetensors(head):
        _check_safetensors(path, size)
        return "safetensors"
    if head[0] == 0x80:
        return "pickle"
    if not head.translate(None, _TEXT):
        what = "a JSON text" if start.startswith((b"{", b"[")) else "a text"
        raise unreadable(path.name, f"it is {what} of {size:,} bytes", ITSELF)
    raise unreadable(path.name, "it is neither a safetensors file nor a torch file", f"It may be damaged. {AGAIN}")


def _looks_like_safetensors(head: bytes) -> bool:
    """Eight bytes with the length of the header, then the header, a JSON object."""
    return len(head) > 8 and head[8:9] == b"{"


def _check_safetensors(path: Path, size: int) -> None:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > MOST_HEADER_BYTES:
            raise unreadable(path.name, "the header of the safetensors file is damaged")
        if 8 + length > size:
            raise unreadable(
                path.name, f"it ends after {size:,} bytes, inside its header", f"The download is incomplete. {AGAIN}"
            )
        header = file.read(length)
    try:
        entries = json.loads(header)
        last = max((int(entry["data_offsets"][1]) for name, entry in entries.items() if name != "__metadata__"), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise unreadable(path.name, "the header of the safetensors file is damaged") from error
    expected = 8 + length + last
    if size < expected:
        raise unreadable(path.name, f"it ends after {size:,} of {expected:,} bytes", f"The download is incomplete. {AGAIN}")


def _check_zip(path: Path, size: int) -> None:
    """A torch file is a zip archive of uncompressed entries, one of which is `data.pkl`."""
    try:
        if not zipfile.is_zipfile(path):
            raise unreadable(path.name, f"it ends early, after {size:,} bytes", f"The download is incomplete. {AGAIN}")
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise unreadable(path.name, "it is damaged") from error
    if not any(entry.filename.endswith("data.pkl") for entry in entries):
        raise unreadable(
            path.name, "it is a zip archive without weights", "If there are weights inside, unpack it and take those."
        )
    if sum(entry.file_size for entry in entries) > size:
        raise unreadable(path.name, "its entries are compressed or overlap, which torch never writes")


def _read_safetensors(path: Path) -> WeightFile:
    try:
        with safe_open(path, "pt") as file:
            return WeightFile({name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {}))  # noqa: SIM118
    except (OSError, MemoryError):
        raise
    except Exception as error:  # safetensors has its own error, and torch's for types of numbers that it does not have
        kind = re.search(r"unknown variant `(\w+)`|float\d\w+", str(error))
        reason = f"it has weights of a type that this torch does not have ({kind[1] or kind[0]})" if kind else "it is damaged"
        raise unreadable(path.name, reason) from error


def _read_pickle(path: Path, container: str) -> Any:
    with _known_classes(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's about its own old formats
        try:
            # torch maps a file by its path only, and takes every path that ends in .safetensors for such a file.
            if container == "zip" and path.suffix != ".safetensors":
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # a damaged pickle can raise anything
            found = _GLOBAL.search(str(error))
            if found:
                raise unreadable(
                    path.name,
                    f"it contains more than weights ({found[1]}), and reading that could run code from the file",
                    "It was not loaded. Take a safetensors file of the same weights.",
                ) from None
            raise unreadable(path.name, "it is damaged, or its download is incomplete") from error


def _known_classes() -> Any:
    """A context in which the weights-only unpickler also accepts numpy's numbers and the bookkeeping of training programs."""
    scalar = np.float64(0).__reduce__()[0]
    known: list[Any] = [
        *((_Bookkeeping, name) for name in BOOKKEEPING),
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        (np.dtype, "numpy.dtype"),
        (_encode, "_codecs.encode"),
        *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")),
    ]
    # Before torch 2.6 classes could not be given under other names; then the host's own list of harmless classes is used.
    named = hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint")
    return torch.serialization.safe_globals(known) if named else nullcontext()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How numpy's numbers are pickled by Python 2 protocols; no other codec is reachable."""
    return str(text).encode("latin1")


def _flatten(value: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Tensors of nested dictionaries under dotted names; everything else is not weights."""
    if isinstance(value, Tensor):
        yield prefix or "weight", value
    elif isinstance(value, Mapping) and depth < 16:
        for key, inside in value.items():
            yield from _flatten(inside, f"{prefix}.{key}" if prefix else str(key), depth + 1)


def _check_tensors(tensors: Mapping[str, Tensor], name: str, size: int) -> None:
    if not tensors:
        raise unreadable(name, "it contains no weights", "Choose another file.")
    total = 0
    for key, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            kind = "quantised" if tensor.is_quantized else "without values" if tensor.is_meta else "sparse"
            raise unreadable(name, f"the weight {key!a} is {kind}", "Take a file with ordinary weights.")
        total += tensor.numel() * tensor.element_size()
        if tensor.numel() * tensor.element_size() > size or total > MOST_SHARING * size:
            raise unreadable(name, f"the weight {key!a} is {list(tensor.shape)}, more than the file's {size:,} bytes contain")
