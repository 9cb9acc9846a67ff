"""The summaries of a folder's maps, cached on the disk, so that a map is read again only after it has changed.

One file for each palette and tolerance. It is only a cache: it may be deleted at any time, and one that is damaged, foreign or of another
version is rebuilt. It is replaced as a whole, never written in place.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .pairs import Pairs, nearest, read_map
from .palettes import Palette
from .retrieval import GRID, SAMPLES, Summaries, summarise_labels
from .snapping import snap_to_palette

_FORMAT = 2
_AT_ONCE = 64  # maps whose colours are looked up together
_SAVE_EVERY = 4096  # maps; what an interruption may cost
_THREADS = 4  # Pillow decodes without Python's lock


@dataclass(frozen=True, eq=False)
class ExemplarIndex:
    """The maps of a folder by name: `stamps` [n, 2] int64 (ns, bytes), summaries, and the reasons why some could not be read."""

    names: tuple[str, ...]
    stamps: np.ndarray
    summaries: Summaries
    problems: dict[str, str]

    def readable(self) -> np.ndarray:
        """The rows of maps that could be read, in order."""
        return np.array([row for row, name in enumerate(self.names) if name not in self.problems], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Updated:
    """An index of the folder's present content, how many maps were read for it, and its file (None: it could not be saved)."""

    index: ExemplarIndex
    read: int
    file: Path | None


def file_name(palette: Palette, tolerance: float) -> str:
    """The index's file for maps read with this palette and tolerance."""
    key = json.dumps([_FORMAT, SAMPLES, GRID, palette.names, palette.colours, palette.void_colour, float(tolerance)])
    return f"exemplary_index_{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"


def update(
    pairs: Pairs, palette: Palette, tolerance: float, files: Iterable[Path], progress: Callable[[int, int], None] | None = None
) -> Updated:
    """Read the maps that are new or changed (another time or size), remove deleted ones, keep the rest.

    Args:
        files: where the index may be stored, the preferred file first. It is read from the first that exists and written to the first
            that can be written.
        progress: called with (done, all) of the maps to read. If it raises, what was read so far is kept.
    """
    files = list(files)
    stamps = pairs.stamps[:, 2:]
    old = next((found for found in (_load(file, palette) for file in files) if found is not None), None)
    if old is not None and old[0].names == pairs.maps and np.array_equal(old[0].stamps, stamps):
        return Updated(old[0], 0, old[1])
    counts = np.zeros((len(pairs), len(palette.names)), dtype=np.uint16)
    cells = np.zeros((len(pairs), GRID * GRID), dtype=np.uint8)
    done = np.zeros(len(pairs), dtype=bool)
    problems: dict[str, str] = {}
    if old is not None:
        _keep(old[0], pairs.maps, stamps, counts, cells, done, problems)
    unread = np.flatnonzero(~done)

    def snapshot() -> ExemplarIndex:
        if done.all():
            return ExemplarIndex(pairs.maps, stamps, Summaries(counts, cells, palette), problems)
        names = tuple(name for name, known in zip(pairs.maps, done) if known)
        return ExemplarIndex(names, stamps[done], Summaries(counts[done], cells[done], palette), problems)

    unsaved = 0
    try:
        with ThreadPoolExecutor(_THREADS) as threads:
            for start in range(0, len(unread), _AT_ONCE):
                if progress is not None:
                    progress(start, len(unread))
                rows = unread[start : start + _AT_ONCE]
                samples = list(threads.map(lambda row: _sample(pairs.folder / pairs.maps[row], palette), rows))
                problems |= {pairs.maps[row]: found for row, found in zip(rows, samples) if isinstance(found, str)}
                read = {row: found for row, found in zip(rows, samples) if not isinstance(found, str)}
                coloured = {row: found for row, found in read.items() if found.ndim == 3}
                labels = {row: found for row, found in read.items() if found.ndim == 2}
                if coloured:
                    image = torch.from_numpy(np.stack(list(coloured.values()))).float().div_(255.0)
                    found = snap_to_palette(image, palette, tolerance, clean_edges=False).labels.numpy()
                    labels |= dict(zip(coloured, found))
                if labels:
                    summaries = summarise_labels(np.stack(list(labels.values())), palette)
                    counts[list(labels)], cells[list(labels)] = summaries.counts, summaries.cells
                done[rows] = True
                unsaved += len(rows)
                if unsaved >= _SAVE_EVERY:
                    _save(snapshot(), files)
                    unsaved = 0
        if progress is not None:
            progress(len(unread), len(unread))
    except BaseException:
        if unsaved:
            _save(snapshot(), files)
        raise
    index = snapshot()
    return Updated(index, len(unread), _save(index, files))


def _sample(path: Path, palette: Palette) -> np.ndarray | str:
    """The map at SAMPLES x SAMPLES points: its colours [h, w, 4] uint8, or its labels [h, w] uint8; or why it cannot be read."""
    try:
        found = read_map(path, palette)
    except ValueError as error:
        return str(error)
    if found.labels is not None:
        return nearest(found.labels, SAMPLES, SAMPLES)
    return np.moveaxis(nearest(np.moveaxis(found.colours, -1, 0), SAMPLES, SAMPLES), 0, -1)


def _keep(
    old: ExemplarIndex,
    names: tuple[str, ...],
    stamps: np.ndarray,
    counts: np.ndarray,
    cells: np.ndarray,
    done: np.ndarray,
    problems: dict[str, str],
) -> None:
    """Fill in what the old index knows of files that have not changed."""
    rows = {name: row for row, name in enumerate(old.names)}
    before = np.array([rows.get(name, -1) for name in names], dtype=np.int64)
    if not len(old.names):
        return
    done[:] = (before >= 0) & (old.stamps[before] == stamps).all(axis=1)
    counts[done], cells[done] = old.summaries.counts[before[done]], old.summaries.cells[before[done]]
    problems |= {names[row]: old.problems[names[row]] for row in np.flatnonzero(done) if names[row] in old.problems}


def _save(index: ExemplarIndex, files: list[Path]) -> Path | None:
    """Write to the first file that can be written: beside it under another name, then renamed."""
    arrays = (index.stamps, index.summaries.counts, index.summaries.cells)
    about = {"exemplary_index": _FORMAT, "names": index.names, "problems": index.problems}
    about["digest"] = _digest(index.names, index.problems, arrays)
    header = json.dumps(about).encode("ascii")
    for path in files:
        written = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.stem}_", suffix=".tmp", delete=False) as file:
                written = Path(file.name)
                for array in (np.frombuffer(header, dtype=np.uint8), *arrays):
                    np.save(file, array, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            written.replace(path)
            return path
        except OSError:  # read-only, full, or open elsewhere: try the next file
            if written is not None:
                with suppress(OSError):
                    written.unlink()
    return None


def _load(path: Path, palette: Palette) -> tuple[ExemplarIndex, Path] | None:
    """The index of a file; None if there is none, or it is damaged or belongs to another palette or version."""
    try:
        with path.open("rb") as file:
            header = json.loads(np.load(file, allow_pickle=False).tobytes())
            stamps, counts, cells = (np.load(file, allow_pickle=False) for _ in range(3))
        names, problems = tuple(header["names"]), dict(header["problems"])
        n = len(names)
        wanted = (((n, 2), np.int64), ((n, len(palette.names)), np.uint16), ((n, GRID * GRID), np.uint8))
        fits = (
            header["exemplary_index"] == _FORMAT
            and all(isinstance(text, str) for text in (*names, *problems, *problems.values()))
            and all((array.shape, array.dtype) == (shape, kind) for array, (shape, kind) in zip((stamps, counts, cells), wanted))
            and header["digest"] == _digest(names, problems, (stamps, counts, cells))
        )
    except Exception:  # a damaged header makes numpy's parser raise nearly anything, and the cache can always be rebuilt
        return None
    return (ExemplarIndex(names, stamps, Summaries(counts, cells, palette), problems), path) if fits else None


def _digest(names: tuple[str, ...], problems: dict[str, str], arrays: Iterable[np.ndarray]) -> str:
    """A checksum: a flipped bit in the counts would otherwise change rankings unnoticed."""
    digest = hashlib.sha256(json.dumps([names, problems]).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
