"""One home for the checks of images, masks, numbers and choices."""

from __future__ import annotations

import math

import pytest
import torch
from pack.py.host import inputs

NODE = "Some Node"


def refuses(message, check, *arguments, **named):
    with pytest.raises(ValueError, match=message) as caught:
        check(*arguments, **named)
    assert str(caught.value).startswith(NODE) and str(caught.value).endswith(".")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_of_any_precision_come_back_in_one_form(dtype, channels):
    image = torch.full((2, 4, 5, channels), 0.5, dtype=dtype)
    found = inputs.check_image(image, NODE)
    assert found.shape == (2, 4, 5, 3) and found.dtype == torch.float32 and bool((found == 0.5).all())
    assert inputs.check_image(image, NODE, keep_alpha=True).shape[-1] == (4 if channels == 4 else 3)
    assert torch.equal(inputs.check_image(image[0], NODE), found[:1])


def test_an_image_is_limited_to_0_1_and_not_changed_itself():
    image = torch.tensor([-1.0, 0.25, 2.0]).view(1, 1, 1, 3)
    assert inputs.check_image(image, NODE).flatten().tolist() == [0.0, 0.25, 1.0]
    assert image.flatten().tolist() == [-1.0, 0.25, 2.0]


def test_images_that_are_wrong_are_refused():
    refuses("exemplar is 3; an IMAGE is", inputs.check_image, 3, NODE, "exemplar")
    for shape in ((4, 4), (1, 4, 4, 2), (1, 4, 4, 5), (1, 1, 4, 4, 3)):
        refuses("image is a tensor of shape", inputs.check_image, torch.zeros(shape), NODE)
    for shape in ((0, 4, 4, 3), (1, 0, 4, 3)):
        refuses("image is empty", inputs.check_image, torch.zeros(shape), NODE)
    refuses("type uint8", inputs.check_image, torch.zeros(1, 4, 4, 3, dtype=torch.uint8), NODE)
    refuses("at least 8 x 8", inputs.check_image, torch.zeros(1, 4, 9, 3), NODE, least_side=8)
    for value in (math.nan, math.inf):
        refuses("NaN or infinite", inputs.check_image, torch.full((1, 2, 2, 3), value), NODE)


def test_masks_of_any_shape_come_back_in_one_form():
    mask = torch.rand(3, 4, 5)
    assert torch.equal(inputs.check_mask(mask, NODE), mask)
    assert torch.equal(inputs.check_mask(mask[0], NODE), mask[:1])
    assert torch.equal(inputs.check_mask(mask[:, None], NODE), mask)
    assert torch.equal(inputs.check_mask(mask[..., None], NODE), mask)
    assert inputs.check_mask(mask.half(), NODE).dtype == torch.float32
    assert torch.equal(inputs.check_mask(mask > 0.5, NODE), (mask > 0.5).float())
    assert inputs.check_mask(3 * mask - 1, NODE).aminmax() == (0.0, 1.0)


def test_masks_that_are_wrong_are_refused():
    for wrong in (None, torch.zeros(4), torch.zeros(2, 4, 4, 3), torch.zeros(1, 1, 1, 4, 4)):
        refuses("a MASK is", inputs.check_mask, wrong, NODE)
    refuses("mask is empty", inputs.check_mask, torch.zeros(0, 4, 4), NODE)
    refuses("type int64", inputs.check_mask, torch.zeros(1, 4, 4, dtype=torch.long), NODE)
    refuses("NaN or infinite", inputs.check_mask, torch.full((4, 4), math.nan), NODE)
    assert not inputs.check_mask(torch.zeros(4, 4), NODE).any()
    refuses("force_mask is 0 everywhere", inputs.check_mask, torch.zeros(4, 4), NODE, "force_mask", allow_blank=False)
    refuses("Load Image returns such a mask", inputs.check_mask, torch.zeros(1, 64, 64), NODE, allow_blank=False)


def test_numbers():
    assert inputs.check_number(1, NODE, "strength", 0, 2) == 1.0
    for value in (math.nan, math.inf, -0.1, 2.1, "1", None, [1]):
        refuses("strength is .*; it must be a number from 0 to 2", inputs.check_number, value, NODE, "strength", 0, 2)
    refuses("a number of at least 0", inputs.check_number, -1, NODE, "context", 0)
    assert inputs.check_integer(64.0, NODE, "width", 8, 128, 8) == 64
    for value in (64.5, 60, 136, 0, math.inf, "64", None):
        refuses("it must be a multiple of 8 from 8 to 128", inputs.check_integer, value, NODE, "width", 8, 128, 8)
    refuses("a whole number from 1 to 9", inputs.check_integer, 1.5, NODE, "count", 1, 9)


def test_choices_batches_and_texts():
    assert inputs.check_choice("b", NODE, "mode", ["a", "b"]) == "b"
    refuses("mode is 'c'; choose one of: a, b", inputs.check_choice, "c", NODE, "mode", ["a", "b"])
    refuses(r"mode is \['a'\]", inputs.check_choice, ["a"], NODE, "mode", ["a", "b"])
    inputs.check_batch(1, 3, NODE, "mask")
    inputs.check_batch(3, 3, NODE, "mask")
    refuses("mask has a batch of 2, but 3 latents are sampled", inputs.check_batch, 2, 3, NODE, "mask")
    refuses("it must be text", inputs.check_text, 3, NODE, "phrase")
    refuses("the VAE input is empty. Connect", inputs.check_connected, None, NODE, "VAE", "Connect one.")
    assert inputs.list_names("abc", 5) == "a, b, c" and inputs.list_names("abcd", 2) == "a, b and 2 more"
