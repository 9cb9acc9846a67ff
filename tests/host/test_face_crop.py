"""Crop to Edit and Stitch: a leaning face comes out upright, goes back to where it was, and the rest of the photo is the photo."""

from __future__ import annotations

import math

import pytest
import torch
from pack.py.host.crop import BY_EYES, UPRIGHT, crop_to_edit, stitch
from pack.py.imaging.faces import face_tilt
from pack.py.semantic.palettes import VOID, Palette
from pack.py.semantic.semantic_map import SemanticMap
from torch.nn.functional import avg_pool2d

NAMES = ("background", "skin", "l_eye", "r_eye")
FACE = Palette("faces", NAMES, tuple((n, n, n) for n in range(4)))
HEIGHT, WIDTH = 427, 640


@pytest.fixture(scope="module")
def photo():
    pictures = pytest.importorskip("sklearn.datasets").load_sample_images().images
    return torch.tensor(pictures[0])[None].float() / 255


def leaning(degrees: float, middle=(250.0, 180.0)) -> SemanticMap:
    """An oval face that leans so far clockwise, with both eyes."""
    angle = math.radians(degrees)
    y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    dx, dy = x - middle[0], y - middle[1]
    u, v = dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)
    labels = ((u / 70) ** 2 + (v / 100) ** 2 < 1).to(torch.uint8)
    for label, side in ((2, 30), (3, -30)):
        labels[(u - side) ** 2 + (v + 20) ** 2 < 100] = label
    return SemanticMap(labels[None], FACE)


def mask_of(face: SemanticMap) -> torch.Tensor:
    return (face.labels > 0).float()


@pytest.mark.parametrize("degrees", [0, 17, -35, 60])
def test_a_leaning_face_comes_out_upright_in_the_middle_and_whole(photo, degrees):
    face = leaning(degrees)
    assert math.degrees(face_tilt(face.labels[0], NAMES, mask_of(face)[0])) == pytest.approx(degrees, abs=0.5)
    image, mask, found, _ = crop_to_edit(photo, mask_of(face), face, align=BY_EYES)
    assert image.shape == (1, 256, 256, 3) and mask.shape == (1, 256, 256) and found.size == (256, 256)
    assert abs(math.degrees(face_tilt(found.labels[0], NAMES, mask_of(found)[0]))) < 1
    y, x = torch.nonzero(mask[0]).T.float()
    assert (float(x.mean()), float(y.mean())) == pytest.approx((128, 128), abs=3)
    assert not mask[0, [0, -1]].any() and not mask[0, :, [0, -1]].any()
    assert set(found.labels.unique().tolist()) <= {0, 1, 2, 3, VOID}


@pytest.mark.parametrize("align", [UPRIGHT, BY_EYES])
def test_back_in_the_photo_nothing_else_has_changed(photo, align):
    face = leaning(25)
    photo = avg_pool2d(photo.movedim(-1, 1), 9, stride=1, padding=4, count_include_pad=False).movedim(
        1, -1
    )  # resampling costs detail
    image, _, _, cut = crop_to_edit(photo, mask_of(face), face, align=align, width=512, height=512, feather=6)
    back = stitch(image, cut)
    outside = cut.weight == 0
    assert torch.equal(back[outside], photo[outside])
    assert (back - photo).abs().amax() < 0.03, "the unedited window is the photo, but for resampling"
    red = torch.tensor([1.0, 0.0, 0.0]).expand(1, 512, 512, 3)
    painted = stitch(red, cut)
    inside = mask_of(face) > 0
    assert (painted[inside] - red[0, 0, 0]).abs().max() < 1e-5, "the face is painted to the pixel"
    assert torch.equal(painted[outside], photo[outside])


def test_a_face_at_the_border_and_two_photos_at_once(photo):
    face = leaning(40, middle=(20.0, 410.0))
    both = torch.cat([photo, photo.flip(2)])
    image, _, maps, cut = crop_to_edit(both, mask_of(face), face, align=BY_EYES)
    assert image.shape[0] == 2 and len(maps) == 2 and VOID in maps.labels
    assert torch.equal(stitch(image, cut)[:, :200], both[:, :200])


def test_mistakes_are_named(photo):
    face = leaning(0)
    blind = SemanticMap((face.labels > 0).to(torch.uint8), FACE)
    for arguments, words in (
        ((photo, mask_of(face), blind), "shows no eyes"),
        ((photo, mask_of(face), None), "semantic_map is empty"),
        ((photo, torch.zeros(1, HEIGHT, WIDTH), face), "mask is empty"),
        ((photo[:, :400], mask_of(face)[:, :400], face), "maps of 640x427 for 1 images of 640x400"),
    ):
        with pytest.raises(ValueError, match=words) as told:
            crop_to_edit(*arguments, align=BY_EYES)
        assert str(told.value).startswith("Crop to Edit")
