from __future__ import annotations

import pytest
import torch
from pack.py.semantic.masks import mask_of_classes, paint_mask, paint_masks
from pack.py.semantic.palettes import VOID, named_palette
from pack.py.semantic.semantic_map import SemanticMap

FACES = named_palette("CelebAMask-HQ")


def random_map(seed, b=2, h=13, w=17, palette=FACES):
    labels = torch.randint(0, len(palette.names), (b, h, w), generator=torch.Generator().manual_seed(seed))
    return SemanticMap(labels, palette)


def painted_one_by_one(masks, threshold):
    """Oracle: pixel by pixel, the last mask that is there."""
    b, h, w = masks[0].shape
    labels = torch.full((b, h, w), VOID)
    for i in range(b):
        for y in range(h):
            for x in range(w):
                for label, mask in enumerate(masks):
                    if mask[i, y, x] >= threshold:
                        labels[i, y, x] = label
    return labels


@pytest.mark.parametrize("seed", range(3))
def test_masks_of_all_classes_make_the_map_again(seed):
    semantic_map = random_map(seed)
    one = SemanticMap(semantic_map.labels[:1], FACES)
    masks = torch.cat([mask_of_classes(one, name) for name in FACES.names])
    assert torch.equal(paint_masks(None, masks, ", ".join(FACES.names), palette=FACES).labels, one.labels)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 1.0])
def test_the_later_mask_wins(threshold):
    masks = torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(1))
    result = paint_masks(None, masks, "a, b\nc, d", threshold=threshold)
    assert torch.equal(result.labels.long(), painted_one_by_one(masks[:, None], threshold))
    assert result.names == ("a", "b", "c", "d")


def test_a_chain_is_the_list():
    masks = list(torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(2)))
    chained = None
    for name, mask in zip(("sky", "sea", "boat"), masks):
        chained = paint_mask(chained, mask, name)
    assert torch.equal(chained.labels, paint_masks(None, torch.cat(masks), "sky, sea, boat").labels)


def test_the_background_takes_what_is_void_and_nothing_else():
    mask = torch.eye(4)[None]
    result = paint_mask(None, mask, "ring", background="sand", palette=named_palette("playground"))
    assert torch.equal(mask_of_classes(result, "ring"), mask)
    assert torch.equal(mask_of_classes(result, "sand"), 1 - mask)


def test_void_erases():
    whole = paint_mask(None, torch.ones(1, 4, 4), "sky")
    assert torch.equal(paint_mask(whole, torch.eye(4)[None], "void").labels == VOID, torch.eye(4)[None].bool())


def test_a_mask_of_another_size_is_resized():
    mask = torch.zeros(1, 4, 4)
    mask[:, :2] = 1
    whole = paint_mask(None, torch.ones(1, 8, 12), "sky")
    assert (paint_mask(whole, mask, "roof").labels[:, :4] == 1).all()


@pytest.mark.parametrize("of_map, of_mask", [(1, 3), (3, 1), (3, 3)])
def test_one_serves_all(of_map, of_mask):
    whole = paint_mask(None, torch.ones(of_map, 4, 4), "sky")
    result = paint_mask(whole, torch.ones(of_mask, 4, 4), "sea")
    assert result.labels.shape == (3, 4, 4) and (result.labels == 1).all()


def test_batches_that_do_not_match_are_named():
    whole = paint_mask(None, torch.ones(2, 4, 4), "sky")
    with pytest.raises(ValueError, match="mask holds 3 images, semantic_map 2"):
        paint_mask(whole, torch.ones(3, 4, 4), "sea")


def test_a_flat_mask_and_a_one_pixel_mask_work():
    assert paint_mask(None, torch.ones(4, 4), "sky").labels.shape == (1, 4, 4)
    assert paint_mask(None, torch.ones(1, 1, 1), "sky").labels.flatten().tolist() == [0]


def test_an_empty_mask_adds_the_class_and_paints_nothing():
    result = paint_mask(None, torch.zeros(1, 4, 4), "sky")
    assert result.names == ("sky",) and (result.labels == VOID).all()


def test_painting_does_not_touch_its_inputs():
    semantic_map, mask = random_map(0), torch.ones(2, 13, 17)
    before = semantic_map.labels.clone()
    paint_mask(semantic_map, mask, "hair", background="skin")
    assert torch.equal(semantic_map.labels, before) and (mask == 1).all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mask": torch.full((1, 4, 4), float("nan"))}, "mask: it has NaN"),
        ({"mask": torch.zeros(1, 0, 4)}, "mask: shape"),
        ({"class_name": "hiar"}, "class_name: 'hiar' .*Did you mean 'hair'"),
        ({"class_name": " "}, "class_name"),
        ({"background": "wall"}, "background: 'wall'"),
        ({"threshold": 0.0}, "threshold: 0.0"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"mask": torch.ones(1, 4, 4), "class_name": "hair", "background": "", "threshold": 0.5, **change}
    with pytest.raises(ValueError, match=message):
        paint_mask(None, arguments.pop("mask"), arguments.pop("class_name"), palette=FACES, **arguments)


def test_an_open_palette_wants_a_name_too():
    with pytest.raises(ValueError, match="class_name"):
        paint_mask(None, torch.ones(1, 4, 4), "  ")
    with pytest.raises(ValueError, match="class_names: 2 names for 3 masks"):
        paint_masks(None, torch.ones(3, 4, 4), "sky, sea")


def test_several_classes_make_one_mask():
    semantic_map = random_map(3)
    labels = semantic_map.labels
    mask = mask_of_classes(semantic_map, "hair, 1\nL_Eye,")
    assert mask.dtype == torch.float32
    assert torch.equal(mask, ((labels == 13) | (labels == 1) | (labels == 4)).float())


def test_a_star_is_every_class_and_void_the_rest():
    semantic_map = SemanticMap(torch.tensor([[[0, 5, VOID]]]), FACES)
    assert mask_of_classes(semantic_map, "*").flatten().tolist() == [1, 1, 0]
    assert mask_of_classes(semantic_map, "void").flatten().tolist() == [0, 0, 1]


def test_an_absent_class_is_an_empty_mask_and_an_unknown_one_an_error():
    semantic_map = SemanticMap(torch.tensor([[[0, 5]]]), FACES)
    assert mask_of_classes(semantic_map, "hat").sum() == 0
    with pytest.raises(ValueError, match="classes: 'car' is not a class of the palette 'CelebAMask-HQ'"):
        mask_of_classes(semantic_map, "car")
    with pytest.raises(ValueError, match="classes: nothing is listed; name at least one of: background, r_eye"):
        mask_of_classes(semantic_map, " ,\n")


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 4), (1, 1, 4, 4), (1, 4, 4, 1)])
@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_masks_come_in_several_shapes_and_scales(shape, scale):
    mask = (torch.eye(4) * scale).reshape(shape)
    assert torch.equal(mask_of_classes(paint_mask(None, mask, "a"), "a"), torch.eye(4)[None])
    assert torch.equal(paint_mask(None, mask.half(), "a").labels, paint_mask(None, mask, "a").labels)


def test_an_image_is_no_mask():
    with pytest.raises(ValueError, match="Convert Image to Mask"):
        paint_mask(None, torch.ones(1, 8, 8, 3), "a")
