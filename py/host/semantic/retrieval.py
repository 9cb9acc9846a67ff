"""Exemplar retrieval on a node: resolves folders, shows progress, compares images with a CLIP_VISION and loads the picked pairs."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch
import torch.nn.functional as F
from torch import Tensor

from ...semantic import exemplar_index
from ...semantic.pairs import MapFile, Pairs, find_pairs, nearest, read_image, read_map, shown
from ...semantic.palettes import VOID, Palette, named_palette
from ...semantic.preview import MUCH_VOID
from ...semantic.remap import remap
from ...semantic.retrieval import SAMPLES, VOID_TARGET, Ranking, Summaries, Weights, rank
from ...semantic.semantic_map import SemanticMap
from ...semantic.snapping import best_palette, snap_to_palette
from .. import notices, playground

#: An included folder of drawn streets with their maps, so that the node can be tried at once.
SHIPPED, STREETS = "playground streets", playground.ASSETS / "streets"
#: The choice for maps that are drawn in the target's colours.
AS_TARGET = "as the target"
_LISTED = 10


@dataclass(frozen=True)
class Choice:
    """Which pairs to output: `count` of them from rank `pick` (1 is the best) on, and how candidates are ranked."""

    pick: int = 1
    count: int = 1
    weights: Weights = field(default_factory=Weights)
    tie: float = 0.02


@dataclass(frozen=True, eq=False)
class Retrieved:
    """The picked pairs, best first: images [1, h, w, 3], their maps in the target's palette and the image's size, scores; and a report."""

    images: list[Tensor]
    maps: list[SemanticMap]
    scores: list[float]
    report: str


def fingerprint(folder: str) -> str:
    """A text that changes whenever the folder's pairs do; the message of the error if there are none."""
    try:
        return find_pairs(resolve(folder)).fingerprint()
    except ValueError as error:
        return str(error)


def resolve(folder: str) -> Path:
    """The folder of a path: absolute, or in the host's input directory; or the included streets, by the name SHIPPED.

    Raises:
        ValueError: empty, or a relative path out of the input directory.
    """
    text = folder.strip().strip("\"'").strip()  # file managers copy paths with quotes
    base = Path(folder_paths.get_input_directory()).absolute()
    if not text or "\0" in text:
        raise ValueError(
            f"folder: {shown(text)!r} is not a folder. Give a folder of images and maps in {shown(base)}, or its full path."
        )
    if Path(text).is_absolute():
        return _in_any_form(Path(text))
    inside = Path(os.path.normpath(base / text))
    if not inside.is_relative_to(base):
        raise ValueError(f"folder: {shown(text)!r} is outside of {shown(base)}. Give the full path of the folder.")
    return STREETS if text == SHIPPED and not inside.exists() else _in_any_form(inside)


def _in_any_form(path: Path) -> Path:
    """The path as the disk spells its accents: macOS decomposes them, keyboards compose them."""
    spellings = (path, *(Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD")))
    return next((spelling for spelling in spellings if os.path.exists(spelling)), path)  # noqa: PTH110 -- False, not an error, for names the disk cannot have


def retrieve(
    target: SemanticMap,
    folder: str,
    palette: str,
    tolerance: float,
    choice: Choice,
    clip_vision: Any = None,
    image: Tensor | None = None,
) -> Retrieved:
    """Find the pairs of a folder whose maps suit the target best, and load them.

    Args:
        folder: see `resolve` and `py/semantic/pairs.py`.
        palette: the colours of the folder's maps, by name or AS_TARGET. Classes are matched by name.
        clip_vision: orders candidates with nearly equal scores by the similarity of their images to `image` [b, h, w, c], or without an
            image by that of the drawn maps.

    Raises:
        ValueError: an unusable folder, no readable pair, a rank beyond the last, an image without clip_vision, a void target.
    """
    if image is not None and clip_vision is None:
        raise ValueError(
            "image: clip_vision is not connected, and image is only compared by it. Connect a Load CLIP Vision, or disconnect image."
        )
    if bool((target.labels == VOID).all()):  # known before the folder is read
        raise ValueError(VOID_TARGET)
    drawn_with = target.palette if palette == AS_TARGET else named_palette(palette)
    path = resolve(folder)
    pairs = find_pairs(path)
    updated = exemplar_index.update(pairs, drawn_with, tolerance, _index_files(path, drawn_with, tolerance), _progress())
    rows = updated.index.readable()
    problems = [*pairs.skipped, *updated.index.problems.values()]
    if len(rows) == 0:
        raise ValueError(f"folder: none of the {len(pairs)} maps in {shown(path)} can be read. {_some(problems)}")
    all_known = len(rows) == len(pairs)
    summaries = updated.index.summaries if all_known else updated.index.summaries.take(rows)
    ranking = rank(target, summaries, choice.weights)
    reader = _Reader(pairs, drawn_with, tolerance)
    similarity = None if clip_vision is None else _similarity(reader, rows, clip_vision, target, image)
    listed = max(_LISTED, choice.pick + choice.count - 1)
    lines: list[str] = []
    images: list[Tensor] = []
    maps: list[SemanticMap] = []
    scores: list[float] = []
    for candidate in ranking.best_first(similarity, choice.tie):
        comfy.model_management.throw_exception_if_processing_interrupted()
        if len(lines) == listed:
            break
        row = int(rows[candidate])
        number = len(lines) + 1
        taken = choice.pick <= number < choice.pick + choice.count
        if number < choice.pick + choice.count:
            try:
                found = reader.image(row)
                semantic_map = _in_palette(reader.semantic_map(row), target.palette, *found.shape[1:3]) if taken else None
            except ValueError as error:
                problems.append(str(error))
                continue
            if semantic_map is not None:
                images.append(found)
                maps.append(semantic_map)
                scores.append(float(ranking.scores[candidate]))
        lines.append(f"{'>' if taken else ' '} {number}. {shown(pairs.images[row])}: {ranking.match(candidate).reasons()}")
    if not images:
        raise ValueError(
            f"pick: {choice.pick}, but the folder has {len(lines)} readable pairs; give 1 to {len(lines)}. {_some(problems)}"
        )
    if problems:
        notices.warn_user(f"Retrieve Exemplar: {_skipped(problems)}")
    report = [_heading(pairs, len(rows), updated), *lines]
    if len(images) < choice.count:
        report.append(f"count is {choice.count}, but only {len(images)} pairs are left from rank {choice.pick} on.")
    report += _advice(summaries, ranking, reader, rows, tolerance)
    report += dict.fromkeys(reader.notes)
    if pairs.unpaired:
        names = ", ".join(shown(name) for name in pairs.unpaired[:_LISTED])
        report.append(f"Without a partner: {names}{_more(len(pairs.unpaired))}")
    if problems:
        report.append(_skipped(problems))
    return Retrieved(images, maps, scores, "\n".join(report))


@dataclass(frozen=True, eq=False)
class _Reader:
    """Reads the pairs of a folder by their row. `notes`: what the user should know about the maps that were read."""

    pairs: Pairs
    palette: Palette
    tolerance: float
    notes: list[str] = field(default_factory=list)

    def image(self, row: int) -> Tensor:
        return read_image(self.pairs.folder / self.pairs.images[row])

    def colours(self, row: int) -> Tensor:
        """The coloured map, [1, h, w, 4] in 0..1."""
        return _as_tensor(self._map_file(row))

    def semantic_map(self, row: int) -> SemanticMap:
        found = self._map_file(row)
        self.notes.extend(found.notes)
        if found.labels is not None:
            return SemanticMap(torch.from_numpy(found.labels)[None], self.palette)
        return snap_to_palette(_as_tensor(found), self.palette, self.tolerance)

    def _map_file(self, row: int) -> MapFile:
        return read_map(self.pairs.folder / self.pairs.maps[row], self.palette)


def _as_tensor(found: MapFile) -> Tensor:
    return torch.from_numpy(found.colours)[None].float().div_(255.0)


def _similarity(
    reader: _Reader, rows: Any, clip_vision: Any, target: SemanticMap, image: Tensor | None
) -> Callable[[int], float]:
    """Cosine similarity of image features, -1 for an image that cannot be read."""
    wanted = _features(clip_vision, target.to_image() if image is None else image)

    def similarity(candidate: int) -> float:
        comfy.model_management.throw_exception_if_processing_interrupted()
        row = int(rows[candidate])
        try:
            if image is not None:
                compared = reader.image(row)
            else:  # drawn in the target's colours, so that a different palette makes no difference
                semantic_map = reader.semantic_map(row)
                compared = _in_palette(semantic_map, target.palette, *semantic_map.size).to_image()
        except ValueError:
            return -1.0
        return float(_features(clip_vision, compared) @ wanted)

    return similarity


def _features(clip_vision: Any, image: Tensor) -> Tensor:
    """The direction of the mean embedding of a batch, [d]. Whole images, not their middle squares: a layout reaches the edges."""
    if image.ndim != 4 or not torch.isfinite(image).all():
        raise ValueError(
            "Retrieve Exemplar: image contains NaN or infinite values, or is not an IMAGE. Check the node that it comes from."
        )
    output = clip_vision.encode_image(image[..., :3].float(), crop=False)
    return F.normalize(output["image_embeds"].detach().float().reshape(len(image), -1).mean(dim=0).cpu(), dim=0)


def _in_palette(semantic_map: SemanticMap, palette: Palette, height: int, width: int) -> SemanticMap:
    """The map with its classes matched by name, in another size."""
    if semantic_map.palette is not palette:
        semantic_map = remap(semantic_map, palette=palette).semantic_map
    if semantic_map.size == (height, width):
        return semantic_map
    return SemanticMap(torch.from_numpy(nearest(semantic_map.labels.numpy(), height, width)), palette)


def _index_files(folder: Path, palette: Palette, tolerance: float) -> list[Path]:
    """In the folder, so that it moves with the pairs; if that is not writable, in the host's user directory."""
    name = exemplar_index.file_name(palette, tolerance)
    where = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    users = Path(folder_paths.get_user_directory()) / "exemplary" / "retrieval" / where / name
    return [users] if folder == STREETS else [folder / name, users]


def _progress() -> Callable[[int, int], None]:
    bar = comfy.utils.ProgressBar(1)

    def show(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if total:
            bar.update_absolute(done, total)

    return show


def _heading(pairs: Pairs, readable: int, updated: exemplar_index.Updated) -> str:
    text = f"{readable} pairs, {updated.read} maps read now. "
    if updated.file is None:
        return text + "The index could not be saved, so the next run reads all maps again."
    return text + f"Index: {shown(updated.file)} (may be deleted)."


def _advice(summaries: Summaries, ranking: Ranking, reader: _Reader, rows: Any, tolerance: float) -> list[str]:
    """A warning if more than half of the folder's maps is void."""
    void = 1.0 - float(summaries.counts.sum(dtype="int64")) / (len(summaries) * SAMPLES * SAMPLES)
    if void <= MUCH_VOID:
        return []
    try:
        fit = best_palette(reader.colours(int(rows[ranking.order[0]])), tolerance)
    except ValueError:  # the file was deleted meanwhile
        return []
    better = fit.share > MUCH_VOID and fit.name != reader.palette.name
    remedy = f"the palette {fit.name!r} fits better" if better else "choose the palette that they were drawn with"
    return [f"Warning: {100 * void:.1f} % of the folder's maps is void in the palette {reader.palette.name!r}; {remedy}."]


def _skipped(problems: list[str]) -> str:
    return f"Skipped: {_some(problems)}"


def _some(problems: list[str]) -> str:
    return "; ".join(problems[:_LISTED]) + _more(len(problems))


def _more(count: int) -> str:
    return f" and {count - _LISTED} more" if count > _LISTED else ""
