from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pack.py.semantic.palettes import NUMBERS_ONLY, PALETTE_NAMES, VOID, named_palette
from pack.py.semantic.preview import reading_report
from pack.py.semantic.semantic_map import SemanticMap
from pack.py.semantic.snapping import AUTOMATIC, best_palette, choose_palette, colours_of_image, snap_to_palette
from PIL import Image

CITY = named_palette("Cityscapes / BDD100K")


def blocky_map(palette, seed, h=512, w=512, blocks=40):
    """Rectangles of random classes and sizes, not aligned to anything."""
    rng = np.random.default_rng(seed)
    labels = np.full((h, w), rng.integers(len(palette.names)), dtype=np.uint8)
    for _ in range(blocks):
        y, x = rng.integers(0, h - 8), rng.integers(0, w - 8)
        labels[y : y + rng.integers(8, h // 3), x : x + rng.integers(8, w // 3)] = rng.integers(len(palette.names))
    return SemanticMap(torch.from_numpy(labels)[None], palette)


def jpeg(image, quality):
    data = io.BytesIO()
    Image.fromarray((image[0] * 255).round().byte().numpy()).save(data, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(data)))[None] / 255


def halved(image):
    """Every pixel the mean of four: soft edges one pixel wide."""
    return F.avg_pool2d(image.movedim(-1, 1), 2).movedim(1, -1)


def nearest_one_by_one(image, palette, tolerance):
    """Oracle: all distances in float64, the smallest, void beyond the tolerance."""
    colours = torch.tensor([*palette.colours, palette.void_colour], dtype=torch.float64)
    pixels = (image.double() * 255).round()
    distance = (pixels[..., None, :] - colours).square().sum(dim=-1).sqrt()
    value, index = distance.min(dim=-1)
    index[index == len(palette.names)] = VOID
    return index.masked_fill(value > tolerance, VOID)


@pytest.mark.parametrize("clean_edges", [False, True])
@pytest.mark.parametrize("tolerance", [0.0, 442.0])
@pytest.mark.parametrize("name", PALETTE_NAMES)
def test_palette_colours_are_their_own_classes(name, tolerance, clean_edges):
    palette = named_palette(name)
    strip = torch.tensor([*palette.colours, palette.void_colour])[None, None] / 255
    labels = snap_to_palette(strip, palette, tolerance, clean_edges).labels[0, 0].tolist()
    # Of classes that share a colour the first is read: ADE20K's skyscraper (48) as road (6).
    expected = [palette.colours.index(colour) for colour in palette.colours]
    assert expected[48] == 6 if name == "ADE20K" else True
    assert labels == [*expected, VOID]


@pytest.mark.parametrize("name", PALETTE_NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_a_drawn_map_is_read_back_exactly(name, seed):
    semantic_map = blocky_map(named_palette(name), seed, 120, 88)
    image = semantic_map.to_image()
    assert torch.equal(snap_to_palette(image, semantic_map.palette).to_image(), image)


@pytest.mark.parametrize("tolerance", [0.0, 20.0, 442.0])
@pytest.mark.parametrize("name", ["Cityscapes / BDD100K", "ADE20K"])
def test_matches_the_nearest_colour_one_by_one(name, tolerance):
    image = torch.rand(2, 17, 23, 3, generator=torch.Generator().manual_seed(0))
    palette = named_palette(name)
    labels = snap_to_palette(image, palette, tolerance, clean_edges=False).labels
    assert torch.equal(labels.long(), nearest_one_by_one(image, palette, tolerance))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "name, least",
    # 94 of the 150 colours of ADE20K lie within 10.5 of another one; quality 75 moves areas that far.
    [("Cityscapes / BDD100K", 0.99), ("COCO-Stuff", 0.99), ("CelebAMask-HQ", 0.99), ("playground", 0.99), ("ADE20K", 0.96)],
)
def test_jpeg_of_quality_75_keeps_the_labels(name, least, seed):
    semantic_map = blocky_map(named_palette(name), seed)
    image = semantic_map.to_image()
    read = snap_to_palette(jpeg(image, 75), semantic_map.palette)
    assert (read.to_image() == image).all(dim=-1).float().mean() >= least


@pytest.mark.parametrize("seed", range(4))
def test_jpeg_invents_no_class(seed):
    semantic_map = blocky_map(CITY, seed)
    read = snap_to_palette(jpeg(semantic_map.to_image(), 75), CITY)
    assert set(read.labels.unique().tolist()) <= {*semantic_map.labels.unique().tolist(), VOID}


@pytest.mark.parametrize("seed", range(4))
def test_soft_edges_invent_no_class_and_take_a_class_beside_them(seed):
    sharp = blocky_map(CITY, seed, 256, 256, blocks=12)
    read = snap_to_palette(halved(sharp.to_image()), CITY).labels
    corners = torch.stack([sharp.labels[:, dy::2, dx::2] for dy in (0, 1) for dx in (0, 1)])
    assert (read == corners).any(dim=0).float().mean() >= 0.998  # three colours meet in the rest
    assert set(read.unique().tolist()) <= {*sharp.labels.unique().tolist(), VOID}


def test_an_edge_is_not_a_third_class():
    sky, road = torch.tensor(CITY.colours[10]) / 255, torch.tensor(CITY.colours[0]) / 255
    image = sky.expand(1, 9, 9, 3).clone()
    image[:, :, 5:] = road
    image[:, :, 4] = 0.5 * (sky + road)  # (99, 97, 154), the colour of wall
    assert snap_to_palette(image, CITY, clean_edges=False).labels[0, 0, 4] == CITY.find("wall")
    assert set(snap_to_palette(image, CITY).labels.unique().tolist()) == {0, 10}


def test_a_lonely_pixel_of_an_exact_colour_stays():
    labels = torch.zeros(1, 9, 9, dtype=torch.uint8)
    labels[0, 4, 4] = 6
    assert torch.equal(snap_to_palette(SemanticMap(labels, CITY).to_image(), CITY).labels, labels)


def test_an_area_of_a_foreign_colour_is_void_up_to_its_border():
    image = torch.zeros(1, 20, 20, 3)
    image[..., 2] = 142 / 255  # car
    image[:, 5:15, 5:15] = torch.tensor([0.1, 1.0, 0.1])
    labels = snap_to_palette(image, CITY).labels
    assert (labels[:, 5:15, 5:15] == VOID).all() and (labels == 13).sum() == 300


@pytest.mark.parametrize("tolerance, void", [(9.0, True), (11.0, False)])
def test_the_tolerance_is_a_distance_in_rgb(tolerance, void):
    image = ((torch.tensor(CITY.colours[8]) + torch.tensor([6.0, 8.0, 0.0])) / 255).expand(1, 4, 4, 3)
    labels = snap_to_palette(image, CITY, tolerance).labels
    assert (labels == (VOID if void else 8)).all()


def test_pictures_of_a_batch_do_not_see_each_other():
    images = torch.cat([jpeg(blocky_map(CITY, seed, 96, 128, blocks=6).to_image(), 75) for seed in range(3)])
    together = snap_to_palette(images, CITY).labels
    alone = torch.cat([snap_to_palette(image[None], CITY).labels for image in images])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 2)])
def test_tiny_pictures_work(size):
    image = (torch.tensor(CITY.colours[3]) / 255).expand(1, *size, 3) + 0.01
    assert (snap_to_palette(image, CITY).labels == 3).all()
    assert len(colours_of_image(image).names) == 1


def test_transparent_places_are_void_and_gray_pictures_are_colours():
    image = torch.cat([(torch.tensor(CITY.colours[0]) / 255).expand(1, 2, 2, 3), torch.ones(1, 2, 2, 1)], dim=-1)
    image[0, 0, 0, 3] = 0.2
    assert snap_to_palette(image, CITY).labels.flatten().tolist() == [VOID, 0, 0, 0]
    assert (snap_to_palette(torch.full((1, 2, 2, 1), 70 / 255), CITY).labels == CITY.find("building")).all()


def test_values_out_of_range_are_clipped():
    image = torch.tensor([2.0, -1.0, -0.2]).expand(1, 2, 2, 3)
    assert (snap_to_palette(image, CITY).labels == CITY.find("rider")).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_no_numbers_are_named(value):
    image = torch.zeros(1, 4, 4, 3)
    image[0, 1, 2, 0] = value
    for read in (lambda: snap_to_palette(image, CITY), lambda: colours_of_image(image)):
        with pytest.raises(ValueError, match=r"image: 1 values are NaN or infinite.*decode"):
            read()


@pytest.mark.parametrize("shape", [(4, 4, 3), (1, 4, 4, 2), (0, 4, 4, 3), (1, 0, 4, 3)])
def test_other_shapes_are_named(shape):
    with pytest.raises(ValueError, match="image: shape"):
        snap_to_palette(torch.zeros(shape), CITY)


@pytest.mark.parametrize("tolerance", [-1.0, float("nan")])
def test_a_tolerance_that_is_no_distance_is_refused(tolerance):
    with pytest.raises(ValueError, match="tolerance"):
        snap_to_palette(torch.zeros(1, 4, 4, 3), CITY, tolerance)


def test_the_input_is_not_touched():
    image = torch.rand(1, 16, 16, 4, generator=torch.Generator().manual_seed(0)) * 1.2
    before = image.clone()
    snap_to_palette(image, CITY)
    colours_of_image(image)
    assert torch.equal(image, before)


def test_the_palette_of_a_picture_is_its_flat_colours_by_size():
    semantic_map = blocky_map(CITY, 0, 256, 256, blocks=12)
    palette = colours_of_image(semantic_map.to_image())
    counts = semantic_map.counts()[0]
    assert [CITY.colours.index(colour) for colour in palette.colours] == counts.argsort(descending=True)[
        : (counts > 0).sum()
    ].tolist()
    assert palette.names[0] == "#{:02x}{:02x}{:02x}".format(*palette.colours[0])


def test_the_palette_of_a_picture_has_no_colours_of_edges():
    labels = torch.zeros(1, 64, 64, dtype=torch.uint8)
    labels[:, 11:41, 11:41] = 10
    labels[:, 21:, 33:] = 13
    soft = halved(SemanticMap(labels, CITY).to_image())
    assert set(colours_of_image(soft).colours) == {CITY.colours[0], CITY.colours[10], CITY.colours[13]}
    assert len(colours_of_image(soft, tolerance=0).names) > 3


def test_near_colours_of_a_picture_without_loss_are_different_classes():
    ade = named_palette("ADE20K")
    labels = torch.full((1, 64, 64), ade.find("vase"), dtype=torch.uint8)
    labels[:, 10:14, 10:14] = ade.find("armchair")  # 10 apart, and few pixels
    image = SemanticMap(labels, ade).to_image()
    palette = colours_of_image(image)
    assert palette.colours == (ade.colours[ade.find("vase")], ade.colours[ade.find("armchair")])
    assert torch.equal(snap_to_palette(image, palette).to_image(), image)


@pytest.mark.parametrize("seed", range(3))
def test_the_palette_of_a_jpeg_is_about_that_of_the_drawing(seed):
    semantic_map = blocky_map(CITY, seed)
    shares = semantic_map.shares()[0]
    large = {CITY.colours[label] for label in range(19) if shares[label] > 0.005}
    found = colours_of_image(jpeg(semantic_map.to_image(), 75)).colours
    for colour in large:
        assert min(sum((a - b) ** 2 for a, b in zip(colour, other)) for other in found) <= 8**2
    assert len(found) <= (shares[:19] > 0).sum() + 3  # noise along edges may pass for a class or two


def test_two_pictures_can_share_one_palette():
    first, second = (blocky_map(CITY, seed, 64, 64, blocks=6).to_image() for seed in (0, 1))
    palette = choose_palette(torch.cat([first, second]), AUTOMATIC, 32.0)
    like = snap_to_palette(first, palette)
    assert choose_palette(second, "ADE20K", 32.0, like) is palette
    assert torch.equal(snap_to_palette(second, palette).to_image(), second)


def test_more_than_255_colours_are_too_many():
    image = torch.arange(256 * 3).reshape(1, 16, 16, 3).float() * 83 % 256 / 255
    with pytest.raises(ValueError, match=r"256 colours, a map at most 255 classes\. Raise the tolerance"):
        colours_of_image(image, tolerance=0)


@pytest.mark.parametrize("name", PALETTE_NAMES)
def test_the_palette_of_a_map_is_recognised(name):
    fit = best_palette(blocky_map(named_palette(name), 0, 256, 300).to_image())
    # The numbers-only palette and the smaller one of the two OneFormer palettes have colours of another one.
    assert name in (fit.name, *fit.ties) or (name in NUMBERS_ONLY and fit.name == "COCO-Stuff")


def test_a_wrong_palette_says_which_one_fits():
    image = blocky_map(named_palette("ADE20K"), 1, 128, 128).to_image()
    wrong = snap_to_palette(image, CITY)
    report = reading_report(wrong, image, 32.0)
    assert report.startswith("The palette 'ADE20K' fits better; choose it.\nWarning: ")
    foreign = torch.tensor([0.35, 0.9, 0.62]).expand(1, 16, 16, 3)
    assert reading_report(snap_to_palette(foreign, CITY, 5.0), foreign, 5.0).startswith("No known palette fits.")
