"""What people bring to cropping and Paint by Example: masks, batches, faces, sizes, number formats, and MODELs that do not fit."""

from __future__ import annotations

import math
import time

import comfy.samplers
import painting
import pytest
import tiny
import torch
from pack.py.host import notices
from pack.py.host.crop import BY_EYES, crop_to_edit, stitch
from pack.py.host.paint_by_example import conditioning, context, prepare
from pack.py.imaging.faces import face_tilt
from pack.py.imaging.masks import feather_mask, grow_mask
from pack.py.semantic.palettes import Palette
from pack.py.semantic.semantic_map import SemanticMap
from painting import VAE, hole, pictures, prepared, sample
from torch.testing import assert_close

NAMES = ("background", "skin", "l_eye", "r_eye", "mouth")
FACES = Palette("faces", NAMES, tuple((n, n, n) for n in range(5)))
AROUND = {"crop": "around the hole"}


@pytest.fixture(scope="module")
def model():
    return painting.tiny_model()


@pytest.fixture(scope="module")
def encoder():
    return painting.tiny_encoder()


@pytest.fixture
def warnings(monkeypatch):
    messages = []
    monkeypatch.setattr(notices, "warn_user", messages.append)
    return messages


def face(labels, x, y, degrees=0.0, eyes=(2, 3)):
    """An upright face of radius 40 at (x, y), rotated clockwise."""
    angle = math.radians(degrees)
    rows, columns = torch.meshgrid(torch.arange(labels.shape[0]) + 0.5, torch.arange(labels.shape[1]) + 0.5, indexing="ij")
    dx, dy = columns - x, rows - y
    u, v = dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)
    labels[(u / 40) ** 2 + (v / 50) ** 2 < 1] = 1
    for label, side in zip(eyes, (15, -15)):
        labels[((u - side) / 6) ** 2 + ((v + 10) / 3) ** 2 < 1] = label
    labels[(u / 10) ** 2 + ((v - 25) / 4) ** 2 < 1] = 4
    return ((u / 40) ** 2 + (v / 50) ** 2 < 1).float()


# Geometry


@pytest.mark.parametrize("place", [(130, 170), (0, 40), (255, 300)])
@pytest.mark.parametrize("size", [(256, 256), (64, 256)])
@pytest.mark.parametrize("feather", [8, 64, 200])
def test_a_feather_is_never_cut_off_by_its_window(place, size, feather):
    source, mask = torch.zeros(1, 300, 300, 3), torch.zeros(1, 300, 300)
    mask[:, place[0] : place[1], place[0] : place[1]] = 1
    _, _, _, record = crop_to_edit(source, mask, width=size[0], height=size[1], context=0.3, feather=feather)
    out = stitch(torch.ones(1, size[1], size[0], 3), record)[0, ..., 0]
    assert_close(out, record.weight[0], rtol=0, atol=1e-5)
    middle = min((place[0] + place[1]) // 2, 299)
    assert out[middle].diff().abs().max() <= 1.5 / feather + 0.5 / (feather // 2 + 1), "no jump"


@pytest.mark.parametrize("degrees", [20, 90, 180])
def test_a_feather_of_a_rotated_window_is_whole(degrees):
    labels = torch.zeros(300, 400, dtype=torch.uint8)
    mask = face(labels, 200, 150, degrees)
    _, _, _, record = crop_to_edit(
        torch.zeros(1, 300, 400, 3), mask[None], SemanticMap(labels[None], FACES), align=BY_EYES, context=0.0, feather=60
    )
    assert record.angles[0] != 0
    out = stitch(torch.ones(1, 256, 256, 3), record)[0, ..., 0]
    assert_close(out, record.weight[0], rtol=0, atol=1e-4)


def test_wide_bands_on_a_large_photo_are_quick():
    mask = torch.zeros(1, 2160, 3840)
    mask[0, 800:1300, 1500:2300] = 1
    start = time.process_time()
    weight = feather_mask(grow_mask(mask, 512), 512)
    assert time.process_time() - start < 3.0  # of one processor
    assert weight[0, 1000, 2000] == 1 and weight[0, 1000, 3840 - 1] == 0


@pytest.mark.parametrize("radius", [1, 7, 40, 300])
def test_running_sums_are_the_plain_maximum_and_mean(radius):
    mask = (torch.rand(2, 90, 130, generator=torch.Generator().manual_seed(0)) < 0.002).float()
    plain = torch.nn.functional.max_pool2d(mask[:, None], 2 * radius + 1, stride=1, padding=radius)[:, 0] if radius < 45 else None
    if plain is not None:
        assert torch.equal(grow_mask(mask, radius), plain)
    weight = feather_mask(mask, radius)
    near = radius // 2
    if near and radius < 45:
        wide = torch.nn.functional.pad(grow_mask(mask, radius - near)[:, None], (near,) * 4, mode="replicate")
        mean = torch.nn.functional.avg_pool2d(wide, 2 * near + 1, stride=1)[:, 0]
        assert_close(weight, torch.where(mask > 0, torch.ones_like(mean), mean), rtol=0, atol=1e-5)
    assert (weight[grow_mask(mask, radius) == 0] == 0).all() and (weight[mask > 0] == 1).all()


# Faces


def test_only_the_masked_face_is_looked_at():
    labels = torch.zeros(400, 800, dtype=torch.uint8)
    first, second = face(labels, 200, 120), face(labels, 600, 270, 30)
    assert abs(math.degrees(face_tilt(labels, NAMES, first))) < 0.5
    assert math.degrees(face_tilt(labels, NAMES, second)) == pytest.approx(30, abs=1)
    hair = second.clone()
    hair[torch.isin(labels, torch.tensor([2, 3, 4], dtype=torch.uint8))] = 0  # `skin, hair`: without the eyes
    assert math.degrees(face_tilt(labels, NAMES, hair)) == pytest.approx(30, abs=1)
    labels[390:392, 790] = 2
    assert abs(math.degrees(face_tilt(labels, NAMES, torch.ones_like(first) * (first > 0)))) < 0.5, "a speck is ignored"


@pytest.mark.parametrize("degrees", [0, 45, 90, -90, 135, 180, -150])
@pytest.mark.parametrize("eyes", [(2, 3), (3, 2), (2, 2)])
def test_lying_and_upside_down_faces_become_upright(degrees, eyes):
    labels = torch.zeros(300, 300, dtype=torch.uint8)
    mask = face(labels, 150, 150, degrees, eyes)
    found = math.degrees(face_tilt(labels, NAMES, mask))
    assert (found - degrees + 180) % 360 - 180 == pytest.approx(0, abs=1)


def test_one_visible_eye_is_not_taken_for_two(warnings):
    labels = torch.zeros(400, 800, dtype=torch.uint8)
    mask = face(labels, 200, 150, 30)
    labels[labels == 3] = 1
    with pytest.raises(ValueError, match="does not show two eyes"):
        face_tilt(labels, NAMES, mask)
    both = torch.stack([labels, torch.zeros_like(labels)])
    second = face(both[1], 300, 200, 20)
    _, _, _, record = crop_to_edit(
        torch.zeros(2, 400, 800, 3), torch.stack([mask, second]), SemanticMap(both, FACES), align=BY_EYES
    )
    assert record.angles[0] == 0 and math.degrees(record.angles[1]) == pytest.approx(20, abs=1)
    assert any("image 1 is not aligned" in message for message in warnings)


# Batches


def test_an_image_without_a_mask_passes_through_untouched(encoder, model, warnings):
    image, masks = pictures(4, 80, 96), hole(80, 96).repeat(4, 1, 1)
    masks[2] = 0
    ready = prepared(encoder, image, masks, **AROUND, feather=4)
    out = stitch(VAE.decode(sample(model, ready, steps=1)), ready[3], 0.5)
    assert torch.equal(out[2], image[2]) and not torch.equal(out[1], image[1])
    assert any("image 3 of 4" in message for message in warnings)


def test_several_masks_of_one_image_in_one_image():
    image = pictures(1, 90, 120)
    masks = torch.cat([hole(90, 120, 5, 25, 5, 25), hole(90, 120, 40, 60, 50, 70), hole(90, 120, 60, 85, 90, 115)])
    crops, _, _, record = crop_to_edit(image, masks, feather=3)
    out = stitch(1 - crops, record, together=True)
    alone = stitch(1 - crops, record)
    assert out.shape == image.shape and alone.shape[0] == 3
    for number, mask in enumerate(masks):
        assert torch.equal(out[0][mask > 0], alone[number][mask > 0])
    outside = grow_mask(masks.amax(dim=0)[None], 3) == 0
    assert torch.equal(out[outside], image[outside])
    assert stitch(torch.cat([crops, 1 - crops]), record, together=True).shape[0] == 2
    other = crop_to_edit(pictures(3, 90, 120), masks)[3]
    with pytest.raises(ValueError, match="together needs several masks of one image"):
        stitch(crops, other, together=True)


def test_repeated_latents_keep_the_order_of_their_sources(model, encoder):
    image = torch.cat([torch.zeros(1, 64, 64, 3), torch.ones(1, 64, 64, 3)])
    positive, negative, latent, record = prepared(encoder, image, hole())
    repeated = {"samples": latent["samples"].repeat(2, 1, 1, 1)}
    seen = []
    handle = model.model.diffusion_model.input_blocks[0][0].register_forward_pre_hook(lambda m, a: seen.append(a[0].clone()))
    try:
        sample(model, (positive, negative, repeated, record), steps=1, cfg=1.0)
        with pytest.raises(ValueError, match="2 source images, but 3 latents"):
            sample(model, (positive, negative, repeated, record), steps=1, batch=3)
    finally:
        handle.remove()
    corner = seen[0][:4, 4, 0, 0]
    assert corner[0] == corner[2] and corner[1] == corner[3] and corner[0] != corner[1]


# Number formats


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_images_and_masks(encoder, dtype):
    image, mask, exemplar = (x.to(dtype) for x in (pictures(1, 80, 96), hole(80, 96), pictures(1, 40, 30)))
    ready = prepared(encoder, image, mask, exemplar=exemplar, **AROUND, feather=5)
    crops, masks, _, record = crop_to_edit(image, mask)
    assert crops.dtype == masks.dtype == torch.float32
    for each in (ready[3], record):
        out = stitch(torch.zeros(1, 64, 64, 3, dtype=dtype), each, 0.5)
        assert out.dtype == dtype and torch.equal(out[each.weight == 0], image[each.weight == 0])


# Warnings and messages


def test_a_mask_of_the_background_is_noticed(encoder, warnings):
    cut_out = torch.zeros(1, 64, 64)
    cut_out[:, 20:64, 24:44] = 1  # an object at the lower edge
    conditioning.make_conditioning(encoder, pictures(), mask=cut_out)
    assert not warnings
    conditioning.make_conditioning(encoder, pictures(), mask=1 - cut_out)
    assert len(warnings) == 1 and "Invert Mask" in warnings[0]


def test_an_exemplar_on_black_is_noticed_and_bars_have_the_colour_of_fill(encoder, warnings, monkeypatch):
    exemplar = torch.zeros(1, 32, 64, 3)
    exemplar[:, 8:24, 16:48] = 0.8
    conditioning.make_conditioning(encoder, exemplar)
    assert len(warnings) == 1 and "black background" in warnings[0]
    seen = []
    monkeypatch.setattr(conditioning.ExemplarEncoder, "encode", lambda self, x: seen.append(x) or self.null())
    conditioning.make_conditioning(encoder, exemplar, mask=(exemplar[..., 0] > 0).float(), fill="white", fit="pad")
    assert len(warnings) == 1 and (seen[0][0, :, 0] == 1).all()


@pytest.mark.parametrize("box, share", [((0, 64, 0, 64), "1e+02 %"), ((30, 33, 30, 33), "0.22 %")])
def test_a_hole_of_an_untrained_size_is_noticed(encoder, warnings, box, share):
    prepared(encoder, mask=hole(64, 64, *box))
    assert len(warnings) == 1 and share in warnings[0] and "window" in warnings[0]


def test_another_image_in_stitch_is_noticed(encoder, warnings):
    record = prepared(encoder)[3]
    stitch(pictures(1, 64, 64), record)
    assert not warnings
    stitch(pictures(1, 64, 96), record)
    assert len(warnings) == 1 and "96 x 64" in warnings[0]


def test_a_model_or_a_prompt_that_does_not_fit_is_reported_before_sampling(model, encoder, warnings):
    ready = prepared(encoder)
    other = tiny.tiny_model()
    with pytest.raises(ValueError, match="is not Paint by Example's"):
        sample(other, ready)
    text = [[torch.randn(1, 77, 64), {}]]
    with pytest.raises(ValueError, match="sampled with a text prompt"):
        sample(model, (text, text, *ready[2:]))
    as_text = prepare.prepare(text, text, VAE, pictures(), hole(), **painting.WHOLE)
    assert sample(other, as_text, steps=1).isfinite().all()
    assert any("ignores the source image" in message for message in warnings)
    conditioned = conditioning.make_conditioning(encoder, pictures(seed=7))
    sample(model, (*conditioned, *ready[2:]), steps=1)
    assert any("without a source image" in message for message in warnings)


def test_the_check_leaves_no_hook_and_changes_nothing(model, encoder):
    ready = prepared(encoder)
    bare = [[[token, {k: v for k, v in options.items() if k != "hooks"}] for token, options in part] for part in ready[:2]]
    assert torch.equal(sample(model, ready), sample(model, (*bare, *ready[2:])))


def test_context_windows_over_different_sources_are_refused_where_the_host_mixes_them_up(model, encoder):
    windows = pytest.importorskip("comfy.context_windows")
    handler = windows.IndexListContextHandler(
        context_schedule=windows.get_matching_context_schedule("standard_static"),
        fuse_method=windows.get_matching_fuse_method("pyramid"),
        context_length=2,
        context_overlap=1,
        dim=0,
    )
    patched = model.clone()
    patched.model_options["context_handler"] = handler
    # This host compares the latents with the noise levels one by one: as many of these as there are latents.
    same = prepared(encoder, pictures(1).repeat(4, 1, 1, 1))
    assert sample(patched, same, steps=3).isfinite().all()
    different = prepared(encoder, pictures(4))
    from pack.py.host.paint_by_example.run_check import _windows_source

    if _windows_source(handler, torch.zeros(4, 4, 8, 8)):
        assert sample(patched, different, steps=3).isfinite().all()
    else:
        with pytest.raises(ValueError, match="does not divide the source images"):
            sample(patched, different, steps=3)


# Context


def test_the_source_is_read_with_the_negative_however_calls_are_split(model, encoder, monkeypatch):
    ready = prepared(encoder)
    patched = context.apply(model, VAE, ready[3], source_reference=1.0)
    together = sample(patched, ready, steps=2)
    monkeypatch.setattr(comfy.samplers, "can_concat_cond", lambda one, two: one is two)
    split = sample(patched, ready, steps=2)
    effect = (together - sample(model, ready, steps=2)).abs().max()
    assert (together - split).abs().max() < 0.01 * effect


def test_two_context_nodes_do_not_share_their_sources(model, encoder):
    one, other = prepared(encoder), prepared(encoder, pictures(seed=9))
    first = context.apply(model, VAE, one[3], source_reference=0.5)
    both = sample(context.apply(first, VAE, other[3], source_reference=0.5), one, steps=2)
    swapped = sample(
        context.apply(context.apply(model, VAE, other[3], source_reference=0.5), VAE, one[3], source_reference=0.5), one, steps=2
    )
    only = sample(first, one, steps=2)
    assert both.isfinite().all() and not torch.equal(both, only) and not torch.equal(swapped, only)


# Values by a link


def test_values_beyond_the_widgets_are_refused_at_once(encoder):
    def refuses(text, call, *arguments, **more):
        start = time.monotonic()
        with pytest.raises(ValueError, match=text):
            call(*arguments, **more)
        assert time.monotonic() - start < 2

    box = (0.2, 0.2, 0.6, 0.6)
    refuses("count is", prepare.make_mask_shapes, box, 64, 64, "bezier", 0.4, 5, 0, 2**70)
    refuses("jitter is", prepare.make_mask_shapes, box, 64, 64, "bezier", 0.4, 2**40, 0, 1)
    refuses("seed is", prepare.make_mask_shapes, box, 64, 64, "bezier", 0.4, 5, 2**70, 1)
    refuses("shape is 'nope'", prepare.make_mask_shapes, box, 64, 64, "nope", 0.4, 5, 0, 1)
    refuses("context is", crop_to_edit, pictures(), hole(), context=1e6)
    refuses("grow is", prepared, encoder, grow=2**40)
    refuses("window is 'nope'", prepared, encoder, crop="nope")
    for name in ("several", "fit", "fill", "course"):
        refuses(f"{name} is 'nope'", conditioning.make_conditioning, encoder, pictures(), **{name: "nope"})
    refuses("type uint8", stitch, torch.zeros(1, 64, 64, 3, dtype=torch.uint8), prepared(encoder)[3], 0.5)
    start = time.process_time()
    assert prepare.make_mask_shapes(box, 8192, 8192, "bezier", 0.4, 5, 0, 1).any()
    assert time.process_time() - start < 8
