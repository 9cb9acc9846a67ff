"""Segmentation networks inside the host: Hugging Face folders on disk and the playground's detector, photos to semantic maps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import folder_paths
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...playground import detector, world
from ...semantic.model_palettes import ModelClasses, classes_in_palette
from ...semantic.palettes import VOID, named_palette
from ...semantic.semantic_map import SemanticMap, look_up
from .. import playground
from ..inputs import check_choice, check_image, check_integer, check_number

FOLDER = "segmentation"
LOAD, SEGMENT = "Load Segmentation Model", "Segment Image"
#: The network that ships with the pack; it knows the playground's drawn images only.
DETECTOR = "playground detector"
AUTOMATIC = "automatic"
PRECISIONS: dict[str, torch.dtype | None] = {
    "automatic": None,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Networks with position embeddings of one size: images are squeezed to it, and the map is stretched back.
_ONE_SIZE = {"beit", "data2vec-vision", "dpt", "eomt", "mobilevit", "mobilevitv2"}
_MULTIPLE = 32  # sides that the pyramids of all these networks divide
_TASK = "the task is semantic"
_CLASSES_AT_ONCE = 8
_ACCUMULATED = 4  # tiles are joined at a quarter of the image's resolution


@dataclass(frozen=True)
class Preprocessing:
    """How a network wants its images: short side in pixels, or one size (h, w) for all; mean and deviation of each channel."""

    short: int = 512
    long: int | None = None
    fixed: tuple[int, int] | None = None
    mean: tuple[float, ...] = _MEAN
    std: tuple[float, ...] = _STD

    def size(self, height: int, width: int, short: int) -> tuple[int, int]:
        """The size that the network sees for an image; proportions are kept up to the rounding to whole multiples."""
        if self.fixed is not None:
            return self.fixed
        scale = (short or self.short) / min(height, width)
        if self.long is not None and not short:
            scale = min(scale, self.long / max(height, width))
        h, w = (max(_MULTIPLE, round(side * scale / _MULTIPLE) * _MULTIPLE) for side in (height, width))
        return h, w


@dataclass(frozen=True, eq=False)
class LoadedSegmentation:
    """A segmentation network that the host loads and offloads, with its class names in the order of its outputs."""

    patcher: Any
    names: tuple[str, ...]
    preprocessing: Preprocessing
    name: str


class SegmentationNetwork(nn.Module):
    """Normalised images [b, 3, h, w] -> class probabilities [b, k, h', w'] float32; h', w' may be smaller.

    Args:
        network: a transformers model for semantic or universal segmentation.
        task: token numbers [1, n] of the task for OneFormer, else None.
    """

    def __init__(self, network: nn.Module, task: Tensor | None = None) -> None:
        super().__init__()
        self.network = network
        self.task: Tensor | None
        self.register_buffer("task", task, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        dtype = next(self.network.parameters()).dtype
        more = {} if self.task is None else {"task_inputs": self.task.expand(len(pixels), -1)}
        found: Any = self.network(pixel_values=pixels.to(dtype), **more)
        if hasattr(found, "masks_queries_logits"):
            # Semantic inference of mask classification (MaskFormer, arXiv 2107.06278): sum over queries of p(class) p(pixel in mask).
            classes = found.class_queries_logits.float().softmax(dim=-1)[..., :-1]
            scores = torch.einsum("bqk,bqhw->bkhw", classes, found.masks_queries_logits.float().sigmoid())
            return scores / scores.sum(dim=1, keepdim=True).clamp_min(1e-6)
        return found.logits.float().softmax(dim=1)


class DetectorNetwork(nn.Module):
    """The playground's detector as a segmentation network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """Images [b, 3, h, w] in 0..1, sides multiples of 16 -> probabilities [b, k, h/2, w/2]."""
        return self.network(pixels)["labels"].float().softmax(dim=1)


def models() -> list[str]:
    """The detector and every folder below models/segmentation that has a config.json."""
    found = set()
    for root in _roots():
        found |= {path.parent.relative_to(root).as_posix() for path in root.glob("*/config.json")}
        found |= {path.parent.relative_to(root).as_posix() for path in root.glob("*/*/config.json")}
    return [DETECTOR, *sorted(found)]


def load(name: str, precision: str = "automatic") -> LoadedSegmentation:
    """The network of a folder of models/segmentation, or the detector. Nothing is downloaded and no code of the folder is run.

    Raises:
        ValueError: no such folder, one without a usable network; says what is needed.
    """
    dtype = PRECISIONS[check_choice(precision, LOAD, "precision", PRECISIONS)]
    if name == DETECTOR:
        network: nn.Module = DetectorNetwork(detector.load_detector(playground.read_weights("judge")))
        return LoadedSegmentation(
            _as_patcher(network), tuple(world.CLASSES), Preprocessing(128, mean=(0.0,) * 3, std=(1.0,) * 3), name
        )
    folder = _folder(name)
    model, config = _load_transformers(folder)
    needs_exact = getattr(config, "model_type", "") == "oneformer"  # token numbers up to 49407 enter its task network as values
    if dtype is None:
        half = comfy.model_management.should_use_fp16(comfy.model_management.get_torch_device(), prioritize_performance=False)
        dtype = torch.float16 if half else torch.float32
    model = model.to(torch.float32 if needs_exact else dtype).requires_grad_(False).eval()
    network = SegmentationNetwork(model, _task_tokens(folder, config) if needs_exact else None)
    labels = getattr(config, "id2label", None) or {}
    names = tuple(str(labels.get(number, labels.get(str(number), f"class {number}"))) for number in range(len(labels)))
    return LoadedSegmentation(_as_patcher(network), names, _preprocessing(folder, config), name)


def segment(
    image: Tensor,
    loaded: LoadedSegmentation | None = None,
    palette: str = AUTOMATIC,
    resolution: int = 0,
    tile_size: int = 0,
    min_confidence: float = 0.0,
) -> tuple[SemanticMap, list[str]]:
    """The semantic map of an IMAGE [b, h, w, c] of any size, and what the user should know.

    Args:
        loaded: None is the playground's detector.
        palette: AUTOMATIC or one of PALETTE_NAMES, see `classes_in_palette`.
        resolution: the short side that the network sees, in pixels; 0 is its own.
        tile_size: look at overlapping squares of so many image pixels, each at the full resolution; 0 looks at the whole image.
        min_confidence: pixels whose best class has a smaller probability become void, 0..1.

    Raises:
        ValueError: an unusable image or number, a palette that cannot hold the network's classes.
    """
    pixels = check_image(image, SEGMENT).movedim(-1, 1)
    resolution = check_integer(resolution, SEGMENT, "resolution", 0, 4096)
    tile_size = check_integer(tile_size, SEGMENT, "tile_size", 0, 8192)
    min_confidence = check_number(min_confidence, SEGMENT, "min_confidence", 0.0, 1.0)
    loaded = load(DETECTOR) if loaded is None else loaded
    target = None if palette == AUTOMATIC else named_palette(palette)
    tiles = list(_tiles(pixels.shape[2], pixels.shape[3], tile_size))
    bar = comfy.utils.ProgressBar(len(pixels) * len(tiles))
    comfy.model_management.load_model_gpu(loaded.patcher)
    maps, classes = [], None
    with torch.no_grad():
        for picture in pixels:
            labels, best = _labels_of(loaded, picture, tiles, resolution, lambda: bar.update(1))
            if classes is None:
                classes = _classes(loaded, int(labels[1]), target)
            found = look_up(np.concatenate([classes.labels, np.full(256 - len(classes.labels), VOID, np.uint8)]), labels[0])
            maps.append(np.where(best < min_confidence, np.uint8(VOID), found))
    if classes is None:  # check_image refuses empty batches
        raise ValueError(f"{SEGMENT}: image is empty. Connect at least one image.")
    return SemanticMap(torch.from_numpy(np.stack(maps)), classes.palette), _notes(loaded, classes)


def _notes(loaded: LoadedSegmentation, classes: ModelClasses) -> list[str]:
    notes = []
    if classes.unnamed:
        notes.append(
            f"{loaded.name} has no class names in its config.json; its classes are numbered in the palette {classes.palette.name!r}. "
            "Choose the palette of the data set that it was trained on."
        )
    if classes.unmatched:
        few = ", ".join(classes.unmatched[:12]) + (" ..." if len(classes.unmatched) > 12 else "")
        notes.append(f"Not in the palette {classes.palette.name!r}, so void: {few}.")
    return notes


def _classes(loaded: LoadedSegmentation, count: int, target: Any) -> ModelClasses:
    names = (*loaded.names, *(f"class {number}" for number in range(len(loaded.names), count)))[:count]
    try:
        return classes_in_palette(names, target)
    except ValueError as error:
        raise ValueError(f"{SEGMENT}: {error}") from None


Tile = tuple[int, int, int, int]


def _tiles(height: int, width: int, tile_size: int) -> Iterator[Tile]:
    """(top, left, height, width) of squares that overlap by at least a quarter; one tile for the whole image where that is enough."""
    if not tile_size or tile_size >= max(height, width):
        yield 0, 0, height, width
        return
    for top, tall in _spans(height, tile_size):
        for left, wide in _spans(width, tile_size):
            yield top, left, tall, wide


def _spans(length: int, tile: int) -> list[tuple[int, int]]:
    if tile >= length:
        return [(0, length)]
    count = math.ceil((length - tile) / (0.75 * tile)) + 1
    return [(round(number * (length - tile) / (count - 1)), tile) for number in range(count)]


def _labels_of(
    loaded: LoadedSegmentation, picture: Tensor, tiles: list[Tile], resolution: int, advance: Callable[[], None]
) -> tuple[tuple[np.ndarray, int], np.ndarray]:
    """The network's class of each pixel [h, w] with the number of classes, and that class's probability [h, w]."""
    height, width = picture.shape[1:]
    total: Tensor | None = None
    scale = 1 if len(tiles) == 1 else _ACCUMULATED
    weights = torch.zeros(1, math.ceil(height / scale), math.ceil(width / scale))
    for top, left, tall, wide in tiles:
        comfy.model_management.throw_exception_if_processing_interrupted()
        scores = _run(loaded, picture[:, top : top + tall, left : left + wide], resolution)
        advance()
        if len(tiles) == 1:
            return _best_class(scores, height, width)
        rows = slice(top // scale, min(weights.shape[1], math.ceil((top + tall) / scale)))
        columns = slice(left // scale, min(weights.shape[2], math.ceil((left + wide) / scale)))
        size = (rows.stop - rows.start, columns.stop - columns.start)
        ramp = _ramp(size[0])[:, None] * _ramp(size[1])[None]
        total = torch.zeros(scores.shape[0], *weights.shape[1:]) if total is None else total
        total[:, rows, columns] += F.interpolate(scores[None], size, mode="bilinear", antialias=True)[0] * ramp
        weights[:, rows, columns] += ramp
    return _best_class((total if total is not None else weights) / weights.clamp_min(1e-6), height, width)


def _run(loaded: LoadedSegmentation, picture: Tensor, resolution: int) -> Tensor:
    """Probabilities [k, h', w'] on the CPU of a part of an image [3, h, w] in 0..1."""
    prepared = loaded.preprocessing
    size = prepared.size(picture.shape[1], picture.shape[2], resolution)
    pixels = F.interpolate(picture[None], size, mode="bilinear", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (prepared.mean, prepared.std))
    pixels = ((pixels - mean) / std).to(loaded.patcher.load_device)
    return loaded.patcher.model(pixels)[0].float().cpu()


def _best_class(scores: Tensor, height: int, width: int) -> tuple[tuple[np.ndarray, int], np.ndarray]:
    """Enlarged a few classes at a time: 150 classes of a large photo would need gigabytes."""
    best = torch.full((height, width), -1.0)
    labels = torch.zeros(height, width, dtype=torch.uint8)
    for first in range(0, len(scores), _CLASSES_AT_ONCE):
        part = scores[None, first : first + _CLASSES_AT_ONCE]
        if part.shape[-2:] != (height, width):
            part = F.interpolate(part, (height, width), mode="bilinear", align_corners=False)
        value, index = part[0].max(dim=0)
        better = value > best
        best = torch.where(better, value, best)
        labels = torch.where(better, (index + first).to(torch.uint8), labels)
    return (labels.numpy(), len(scores)), best.numpy()


def _ramp(length: int) -> Tensor:
    """Weights that fall towards both ends of a tile, so that no seam is seen where tiles overlap."""
    position = torch.arange(length) + 0.5
    return torch.minimum(position, length - position).clamp_max(length / 4) / (length / 4)


def _roots() -> list[Path]:
    if FOLDER not in folder_paths.folder_names_and_paths:
        folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
    return [Path(root) for root in folder_paths.get_folder_paths(FOLDER)]


def _folder(name: Any) -> Path:
    if isinstance(name, str) and name in models():
        for root in _roots():
            if (root / name / "config.json").is_file():
                return root / name
    where = " or ".join(str(root) for root in _roots())
    raise ValueError(
        f"{LOAD}: {name!a} is not a folder with a config.json in {where}. Put the files of a Hugging Face model (config.json, "
        "preprocessor_config.json, model.safetensors) into a folder there and press R to refresh."
    )


def _load_transformers(folder: Path) -> tuple[Any, Any]:
    try:
        from transformers import AutoConfig, AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation

        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        kinds = (AutoModelForUniversalSegmentation, AutoModelForSemanticSegmentation)
        kind = next((kind for kind in kinds if type(config) in kind._model_mapping), None)
        if kind is None:
            known = sorted({c.model_type for each in kinds for c in each._model_mapping})
            raise ValueError(f"its kind is {config.model_type!r}, but a segmentation network is one of: {', '.join(known)}")
        weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
        if not weights:
            raise ValueError("it has no model.safetensors")
        safe = weights[0].suffix == ".safetensors"
        return kind.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, use_safetensors=safe), config
    except Exception as error:  # transformers raises nearly anything for a damaged folder
        reason = " ".join(str(error).split())[:300].replace(str(folder), folder.name)
        if "weights_only" in reason:  # torch's own advice is unsafe
            reason = "its weights file holds more than weights"
        raise ValueError(
            f"{LOAD}: the folder {folder.name!r} cannot be loaded: {reason}. Download config.json, preprocessor_config.json and "
            "model.safetensors of the model again."
        ) from None


def _preprocessing(folder: Path, config: Any) -> Preprocessing:
    """From preprocessor_config.json; what it lacks is as usual for networks trained on ImageNet."""
    about: dict = {}
    path = folder / "preprocessor_config.json"
    if path.is_file():
        try:
            about = json.loads(path.read_text(encoding="utf-8-sig"))
            about = about.get("image_processor", about)
        except (OSError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{LOAD}: preprocessor_config.json of {folder.name!r} cannot be read ({error}). Download it again."
            ) from None
    size = about.get("size", {})
    size = {"shortest_edge": size} if isinstance(size, int) else size if isinstance(size, dict) else {}
    height, width = size.get("height"), size.get("width")
    short = size.get("shortest_edge") or min(height or 512, width or 512)
    long = size.get("longest_edge") or about.get("max_size")
    fixed = None
    if getattr(config, "model_type", "") in _ONE_SIZE:
        side = getattr(config, "image_size", None) or short
        fixed = (height or side, width or side) if isinstance(side, int) else (int(side[0]), int(side[1]))
    mean, std = tuple(about.get("image_mean") or _MEAN), tuple(about.get("image_std") or _STD)
    if about.get("do_normalize") is False:
        mean, std = (0.0,) * 3, (1.0,) * 3
    return Preprocessing(int(short), long if isinstance(long, int) else None, fixed, mean, std)


def _task_tokens(folder: Path, config: Any) -> Tensor:
    """The token numbers of OneFormer's task text [1, n], 0 after its end; by the folder's CLIP tokenizer, or else the host's."""
    import comfy.sd1_clip
    from transformers import CLIPTokenizer

    own = any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json"))
    source = folder if own else Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer"
    try:
        tokens = CLIPTokenizer.from_pretrained(str(source), local_files_only=True)(_TASK)["input_ids"]
    except Exception as error:
        raise ValueError(
            f"{LOAD}: the tokenizer of {folder.name!r} cannot be read ({' '.join(str(error).split())[:200]}). Download vocab.json and "
            "merges.txt of the model again."
        ) from None
    length = int(getattr(config, "task_seq_len", 77))
    return torch.tensor([(tokens + [0] * length)[:length]])


def _as_patcher(network: nn.Module) -> Any:
    """In a plain ModelPatcher: the host cannot load the layers of these networks one by one, so it moves them whole."""
    return comfy.model_patcher.ModelPatcher(
        network.eval(),
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
