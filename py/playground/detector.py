"""The detector: a small network that says what is drawn where, and how well an image keeps a promise.

It reads each pixel's class, its colour word and its texture or style word, and names each object by its whole outline, which pixels in the
middle of it cannot see. It is trained on drawn scenes only (`recipes/detector.py`); its own accuracy on held-out scenes is part of every report
that it writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..evaluation.detection import iou
from . import world
from .scene import Box, Scene

#: Colour words by the group that they belong to; a pixel's class says which group can apply.
COLOUR_GROUPS: dict[str, tuple[str, ...]] = {
    "colour": tuple(world.COLOURS),
    "skin": tuple(world.SKINS),
    "hair": tuple(world.HAIRS),
    "eyes": tuple(world.EYES),
    "mouth": tuple(world.MOUTHS),
    "backdrop": tuple(world.BACKDROPS),
    "sky": tuple(world.SKIES),
    "season": tuple(world.GRASSES),
    "road": tuple(world.ROADS),
}
COLOUR_WORDS: tuple[tuple[str, str], ...] = tuple((group, word) for group, words in COLOUR_GROUPS.items() for word in words)
STYLE_WORDS: tuple[tuple[str, str], ...] = tuple(
    [("texture", word) for word in world.TEXTURES] + [("style", word) for word in world.HAIR_STYLES]
)
IGNORE = 255
OUTLINE = 32  # pixels a side of what `Outlines` looks at
_COLOURS = [k for k, (group, _) in enumerate(COLOUR_WORDS) if group == "colour"]
HEADS = {"labels": len(world.CLASS_NAMES), "colours": len(COLOUR_WORDS), "styles": len(STYLE_WORDS)}

#: class -> (group of its colour, attribute of the instance or scene that holds it)
_COLOUR_OF: dict[str, tuple[str, str]] = {
    **dict.fromkeys((*world.OBJECTS, "house", "car"), ("colour", "colour")),
    "clothes": ("colour", "shirt"),
    "skin": ("skin", "skin"),
    "hair": ("hair", "hair"),
    "eye": ("eyes", "eyes"),
    "mouth": ("mouth", "mouth"),
    "backdrop": ("backdrop", "backdrop"),
    "sky": ("sky", "sky"),
    "grass": ("season", "season"),
    "road": ("road", "road"),
}
_STYLE_OF: dict[str, tuple[str, str]] = {**dict.fromkeys(world.OBJECTS, ("texture", "texture")), "hair": ("style", "style")}


def _words_of(scene: Scene, of: dict[str, tuple[str, str]], words: tuple[tuple[str, str], ...]) -> np.ndarray:
    """[h, w] uint8: the position in `words` of each pixel's word, IGNORE where the scene says none."""
    out = np.full(scene.labels.shape, IGNORE, dtype=np.uint8)
    for number in range(len(scene.instances) + 1):
        attributes = scene.instances[number - 1].attributes if number else scene.attributes
        here = scene.instance_map == number
        for label in np.unique(scene.labels[here]):
            group, key = of.get(world.CLASS_NAMES[label], ("", ""))
            if (group, attributes.get(key, "")) in words:
                out[here & (scene.labels == label)] = words.index((group, attributes[key]))
    return out


def truth(scene: Scene) -> dict[str, np.ndarray]:
    """What the detector should say of a drawn scene: three maps [h, w] uint8, named as the heads."""
    return {
        "labels": scene.labels,
        "colours": _words_of(scene, _COLOUR_OF, COLOUR_WORDS),
        "styles": _words_of(scene, _STYLE_OF, STYLE_WORDS),
    }


def _block(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False),
        nn.GroupNorm(8, c_out),
        nn.SiLU(),
        nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False),
        nn.GroupNorm(8, c_out),
        nn.SiLU(),
    )


class Outlines(nn.Module):
    """Names objects: crops [n, 4, OUTLINE, OUTLINE] (image and silhouette, see `crops`) -> logits [n, len(world.OBJECTS)]."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        sizes = [4, width, width * 2, width * 3]
        self.blocks = nn.Sequential(*(_block(a, b, 2) for a, b in pairwise(sizes)))
        self.head = nn.Linear(sizes[-1] * (OUTLINE // 8) ** 2, len(world.OBJECTS))

    def forward(self, crops: Tensor) -> Tensor:
        return self.head(self.blocks(crops * 2 - 1).flatten(1))


class SceneDetector(nn.Module):
    """Images [b, 3, h, w] in 0..1, h and w multiples of 16 -> logits [b, k, h/2, w/2] for each head."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        sizes = [width, width * 2, width * 3, width * 4]
        self.down = nn.ModuleList([_block(a, b, 2) for a, b in zip([3, *sizes], sizes)])
        self.up = nn.ModuleList([_block(a + b, b) for a, b in zip(sizes[:0:-1], sizes[-2::-1])])
        self.heads = nn.ModuleDict({name: nn.Conv2d(width, count, 1) for name, count in HEADS.items()})
        self.outlines = Outlines()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x, skips = images * 2 - 1, []
        for down in self.down:
            x = down(x)
            skips.append(x)
        for up, skip in zip(self.up, skips[-2::-1]):
            x = up(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skip], dim=1))
        return {name: head(x) for name, head in self.heads.items()}


def load_detector(state: dict[str, Tensor]) -> SceneDetector:
    """The shipped weights as a detector in float32, for inference."""
    detector = SceneDetector()
    detector.load_state_dict({k: v.float() for k, v in state.items()})
    return detector.eval().requires_grad_(False)


@dataclass(frozen=True)
class Found:
    """One thing that the detector sees: `box` x0, y0, x1, y1 in 0..1, `area` the share of the image."""

    name: str
    box: Box
    area: float
    colour: str
    texture: str


def _word_in(logits: Tensor, here: Tensor, words: tuple[tuple[str, str], ...], group: str) -> str:
    """The word of `group` that the pixels `here` vote for; logits [k, h, w]."""
    members = [k for k, (g, _) in enumerate(words) if g == group]
    votes = logits[members][:, here].float().softmax(dim=0).mean(dim=1)
    return words[members[int(votes.argmax())]][1]


@torch.no_grad()
def look(detector: SceneDetector, images: Tensor) -> list[dict[str, Tensor]]:
    """The logits of every image [b, 3, h, w] in 0..1, one dict of [k, h/2, w/2] an image."""
    out = detector(images)
    return [{name: logits[row] for name, logits in out.items()} for row in range(len(images))]


def silhouettes(seen: dict[str, Tensor], smallest: float = 0.008) -> list[np.ndarray]:
    """The objects in one image as masks [h/2, w/2], each at least `smallest` of the area.

    An object is a connected place where the detector sees objects of whatever class. Two that touch are distinguished by their colours.
    """
    from scipy import ndimage

    members = [world.LABEL[name] for name in world.OBJECTS]
    there = (seen["labels"].float().softmax(dim=0)[members].sum(dim=0) > 0.5).cpu().numpy()
    colours = seen["colours"][_COLOURS].argmax(dim=0).cpu().numpy()
    found = []
    # A one-pixel gap (a fish's tail, an outline) does not make two objects of one.
    parts, count = ndimage.label(ndimage.binary_dilation(there))
    for number in range(1, count + 1):
        here = (parts == number) & there
        shares = np.bincount(colours[here], minlength=len(_COLOURS)) / max(1, here.sum())
        own = np.flatnonzero(shares >= 0.2)  # less is a pattern or an outline, not a second thing
        found += [here] if len(own) < 2 else [here & (colours == colour) for colour in own]
    return [mask for mask in found if mask.mean() >= smallest]


def box_of(mask: np.ndarray) -> Box:
    """The bounding box of a mask [h, w] that is not empty, in 0..1."""
    (ys, xs), (h, w) = np.nonzero(mask), mask.shape
    return float(xs.min() / w), float(ys.min() / h), float((xs.max() + 1) / w), float((ys.max() + 1) / h)


def crops(image: Tensor, masks: list[np.ndarray]) -> Tensor:
    """An image [3, h, w] and silhouettes in it -> [n, 4, OUTLINE, OUTLINE]: the square around each, and the silhouette in it."""
    out = []
    for mask in masks:
        x0, y0, x1, y1 = box_of(mask)
        half = 0.55 * max(x1 - x0, y1 - y0)  # a little of the surroundings on every side
        theta = torch.tensor([[[2 * half, 0.0, x0 + x1 - 1], [0.0, 2 * half, y0 + y1 - 1]]])
        grid = F.affine_grid(theta, [1, 1, OUTLINE, OUTLINE], align_corners=False)
        planes = [image.float().cpu(), torch.from_numpy(mask).float()[None]]
        out.append(torch.cat([F.grid_sample(p[None], grid, align_corners=False)[0] for p in planes]))
    return torch.stack(out)


@torch.no_grad()
def find_outlined(detector: SceneDetector, image: Tensor, seen: dict[str, Tensor]) -> list[tuple[np.ndarray, Found]]:
    """The objects in one image [3, h, w] in 0..1 of which the detector has `seen` the pixels, with their silhouettes, largest first."""
    masks = silhouettes(seen)
    if not masks:
        return []
    names = detector.outlines(crops(image, masks)).argmax(dim=1).tolist()
    found = []
    for mask, name in zip(masks, names):
        here = torch.from_numpy(mask)
        colour = _word_in(seen["colours"], here, COLOUR_WORDS, "colour")
        texture = _word_in(seen["styles"], here, STYLE_WORDS, "texture")
        found.append((mask, Found(world.OBJECTS[name], box_of(mask), float(mask.mean()), colour, texture)))
    return sorted(found, key=lambda pair: -pair[1].area)


def find_objects(detector: SceneDetector, image: Tensor, seen: dict[str, Tensor]) -> list[Found]:
    """The same without the silhouettes."""
    return [found for _, found in find_outlined(detector, image, seen)]


def shows(found: list[Found], name: str, colour: str) -> bool:
    """Is there an object of this class and this colour?"""
    return any(f.name == name and f.colour == colour for f in found)


def is_found_at(found: list[Found], name: str, colour: str, box: Box, overlap: float = 0.5) -> bool:
    """Instance success: an object of this class and colour whose box has at least `overlap` IoU with the asked one."""
    return any(f.name == name and f.colour == colour and iou(f.box, box) >= overlap for f in found)


#: What a person is known by at the size of a person in a place: eyes, mouth and glasses are one or two pixels there.
IDENTITY = ("skin", "hair", "clothes")
#: The classes that only one place has; the sky and windows are shared.
PLACE_CLASSES: dict[str, tuple[str, ...]] = {
    "park": ("grass", "tree"),
    "beach": ("sand", "sea"),
    "city": ("house", "road"),
    "mountains": ("snow",),
    "room": ("wall", "floor"),
}


def person_in(seen: dict[str, Tensor], x0: float = 0.0, x1: float = 1.0, smallest: float = 0.002) -> dict[str, str]:
    """The colour words of skin, hair and shirt of the person between two columns, 0..1; a part that is not there is left out."""
    labels = seen["labels"].argmax(dim=0)
    columns = torch.arange(labels.shape[1], device=labels.device)
    inside = (columns >= x0 * labels.shape[1]) & (columns < x1 * labels.shape[1])
    words = {}
    for name in IDENTITY:
        here = (labels == world.LABEL[name]) & inside
        if float(here.float().mean()) >= smallest:
            group, attribute = _COLOUR_OF[name]
            words[attribute] = _word_in(seen["colours"], here, COLOUR_WORDS, group)
    return words


def is_person(words: dict[str, str], attributes: dict[str, str]) -> bool:
    """Are skin, hair and shirt those of this person? By chance that is one in 256."""
    return all(words.get(key) == attributes[key] for key in (_COLOUR_OF[name][1] for name in IDENTITY))


def place_of(seen: dict[str, Tensor]) -> str:
    """The place whose own classes cover the most, "" if none of them is there."""
    counts = torch.bincount(seen["labels"].argmax(dim=0).flatten(), minlength=len(world.CLASS_NAMES))
    cover = {place: int(sum(counts[world.LABEL[name]] for name in names)) for place, names in PLACE_CLASSES.items()}
    best = max(cover, key=lambda place: cover[place])
    return best if cover[best] else ""


def agreement(seen: dict[str, Tensor], scene: Scene) -> dict[str, float]:
    """The share of pixels on which the detector and a drawn scene agree, for each head (where the scene says something)."""
    shares = {}
    for name, expected in truth(scene).items():
        half = torch.from_numpy(expected[::2, ::2].astype(np.int64))
        said = half != IGNORE
        if said.any():
            shares[name] = float((seen[name].argmax(dim=0).cpu() == half)[said].float().mean())
    return shares


def as_batch(pictures: np.ndarray) -> Tensor:
    """Images [b, h, w, 3] uint8 -> [b, 3, h, w] float in 0..1."""
    return rearrange(torch.from_numpy(pictures).float() / 255, "b h w c -> b c h w")
