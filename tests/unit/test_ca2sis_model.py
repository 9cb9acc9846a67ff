"""CA2-SIS's networks at tiny size: what belongs to whom, what absent classes get, which inputs are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pack.py.ca2sis import attention, codes
from pack.py.ca2sis.encoder import SCALES, masked_mean
from pack.py.ca2sis.model import Attention, Block, Config, Generator

TINY = Config(
    classes=5, mask_channels=4, style_dim=8, width=32, encoder_width=2, grid=(4, 4), mask_size=(16, 16),
    head_dims=(8, 8, 8, 8, 8), noise_dim=16, noise_width=16,
)  # fmt: skip


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny(config=TINY, seed=0):
    """Weights from a generator of our own: the default ones would depend on what ran before."""
    model = Generator(config, device="meta").to_empty(device="cpu").eval().requires_grad_(False)
    g = rng(seed)
    for name, value in model.state_dict().items():
        if value.ndim > 1:
            value.normal_(std=value[0].numel() ** -0.5, generator=g)
        else:
            value.normal_(mean=float(name.endswith("weight")), std=0.1, generator=g)
    return model


@pytest.fixture(scope="module")
def model():
    return tiny()


def faces(b=2, classes=5, size=64, seed=1):
    """Images in [-1, 1] and masks in blocks; class 4 is never there."""
    blocks = torch.randint(0, classes - 1, (b, 8, 8), generator=rng(seed))
    labels = blocks.repeat_interleave(size // 8, dim=1).repeat_interleave(size // 8, dim=2)
    return torch.rand(b, 3, size, size, generator=rng(seed + 1)) * 2 - 1, codes.one_hot(labels, classes)


def parameters(config, part=""):
    return sum(p.numel() for name, p in Generator(config, device="meta").named_parameters() if name.startswith(part))


def test_the_published_size_is_met_to_the_last_parameter():
    whole = Generator(Config(), device="meta")
    assert len(whole.state_dict()) == 388 and parameters(Config()) == 77_229_243
    assert parameters(Config(), "encs") == 4_194_560 and parameters(Config(), "style_encoder") == 18_069_304
    assert parameters(Config(), "noise_encoder") == 28_244_224
    assert [parameters(Config(), f"cross{i}") for i in range(2, 7)] == [6_301_440, 6_169_984, 6_104_256, 5_021_280, 567_264]
    assert Config().image_size == (256, 256) and Config().code_dim == 1280


def test_151_classes_have_the_size_measured_for_ade20k():
    ade = Config(classes=151, mask_channels=151)
    found = [round(parameters(ade, part) / 1e6, 1) for part in ("style_encoder", "noise_encoder")]
    assert found == [143.6, 218.9] and ade.has_background


def test_a_picture_does_not_depend_on_its_batch(model):
    image, mask = faces(2)
    z, s = model.encode_shape(mask), model.encode_style(image, mask)
    drawn = model.decode(z, s)
    assert drawn.shape == (2, 3, 64, 64) and s.shape == (2, 5, 40) and z.shape == (2, 4, 16)
    for i in range(2):
        alone = slice(i, i + 1)
        # Other batch sizes take other kernels: equal to float32 rounding, through some twenty layers.
        torch.testing.assert_close(model.encode_style(image[alone], mask[alone]), s[alone], rtol=0, atol=1e-5)
        torch.testing.assert_close(model.decode(z[alone], s[alone]), drawn[alone], rtol=0, atol=1e-4)


def test_one_shape_serves_all_styles_and_the_other_way_round(model):
    image, mask = faces(2)
    z, s = model.encode_shape(mask), model.encode_style(image, mask)
    # An expanded batch may take another kernel than a copied one.
    torch.testing.assert_close(model.decode(z[:1], s), model.decode(z[[0, 0]], s), rtol=0, atol=1e-4)
    torch.testing.assert_close(model.decode(z, s[:1]), model.decode(z, s[[0, 0]]), rtol=0, atol=1e-4)


def test_a_class_without_pixels_gets_tanh_of_the_bias_whatever_the_image(model):
    image, mask = faces(2)
    s = model.encode_style(image, mask)
    absent = model.style_encoder.absent()
    assert absent.shape == (5, 40) and (absent != 0).any()
    # The last bit of tanh may depend on a number's place in a vector register.
    torch.testing.assert_close(s[:, 4], absent[4].expand(2, -1), rtol=0, atol=1e-6)
    torch.testing.assert_close(s[0, 4], s[1, 4], rtol=0, atol=1e-6)
    assert (s[:, :4] != absent[:4]).any(dim=-1).all()


def present_at_scales(mask):
    """[b, s, k]: the classes whose mean at each scale has pixels, by the encoder's own averaging."""
    b, k, h, w = mask.shape
    sizes = [(h >> (SCALES - i), w >> (SCALES - i)) for i in range(SCALES)]
    return torch.stack([masked_mean(torch.ones(b, k, 1, *size), mask)[..., 0] > 0.5 for size in sizes], dim=1)


def test_a_class_that_vanishes_at_a_coarse_scale_gets_the_bias_there_only(model):
    image, mask = faces(1)
    mask[:, :, 1, 1] = 0
    mask[:, 4, 1, 1] = 1  # one pixel: no coarser grid of nearest neighbours holds it
    s, absent = model.encode_style(image, mask), model.style_encoder.absent()
    assert not present_at_scales(mask)[0, :, 4].any() and codes.present_classes(mask)[0, 4]
    torch.testing.assert_close(s[0, 4], absent[4], rtol=0, atol=1e-6)
    mask[:, 4, :2, :2] = 1  # now the finest grid does, and the coarser ones too, at their corner
    assert present_at_scales(mask)[0, :, 4].all()


def test_editing_the_pixels_of_one_class_moves_the_codes_of_others(model):
    """Not a wish but a fact of the weights: receptive fields overlap and the skips are not interleaved."""
    image, mask = faces(1)
    edited = torch.where(mask[:, 2:3] > 0, -image, image)
    moved = (model.encode_style(edited, mask) - model.encode_style(image, mask)).abs().amax(dim=-1)[0]
    assert (moved[:4] > 1e-4).all() and moved[4] == 0


def test_another_style_for_one_class_reaches_the_picture_and_no_other_code(model):
    image, mask = faces(2)
    present = codes.present_classes(mask)
    style = codes.Style(model.encode_style(image, mask), present, codes.class_names(5))
    mixed = codes.mix_styles(style, style.rows([1, 0]), [2])
    z = model.encode_shape(mask)
    assert (model.decode(z, mixed.codes) - model.decode(z, style.codes)).abs().max() > 1e-3


def test_the_masked_mean_is_the_mean_over_the_pixels():
    features, mask = torch.randn(2, 3, 4, 8, 8, generator=rng()), (torch.rand(2, 3, 8, 8, generator=rng(1)) > 0.5).float()
    found = masked_mean(features, mask)
    for b in range(2):
        for k in range(3):
            expected = features[b, k][:, mask[b, k] > 0].mean(dim=-1)
            torch.testing.assert_close(found[b, k], expected, rtol=0, atol=1e-5)


def textbook(q, k, heads):
    """The whole table, per head, before the softmax: [b, n, l, m]."""
    q, k = (t.unflatten(-1, (heads, -1)).transpose(1, 2).double() for t in (q, k))
    return q @ k.mT / q.shape[-1] ** 0.5


def test_attention_maps_and_logits_equal_the_whole_table():
    q, k, v = (torch.randn(2, l, 24, generator=rng(l)) for l in (12, 5, 5))
    table = textbook(q, k, 3)
    values = v.unflatten(-1, (3, -1)).transpose(1, 2).double()
    out = (table.softmax(-1) @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention.attend(q, k, v, 3).double(), out, rtol=0, atol=1e-5)
    logits = table.mean(dim=1).mT.unflatten(-1, (3, 4))
    torch.testing.assert_close(attention.mean_logits(q, k, 3, (3, 4)).double(), logits, rtol=0, atol=1e-5)
    maps = table.softmax(-1).mean(dim=1).mT.unflatten(-1, (3, 4))
    torch.testing.assert_close(attention.mean_attention(q, k, 3, (3, 4)).double(), maps, rtol=0, atol=1e-6)


def test_the_preview_has_one_map_a_level_and_shares_out_each_pixel(model):
    image, mask = faces(2)
    maps = model.attention_maps(model.encode_shape(mask), model.encode_style(image, mask))
    assert [tuple(m.shape) for m in maps] == [(2, 5, n, n) for n in (4, 8, 16, 32, 64)]
    for m in maps:
        torch.testing.assert_close(m.sum(dim=1), torch.ones_like(m[:, 0]))


def test_a_block_in_slices_equals_the_whole_one(monkeypatch):
    block = Block(16, 8, 2, False).eval()
    x, style = torch.randn(2, 300, 16, generator=rng()), torch.randn(2, 3, 8, generator=rng(1))
    with torch.no_grad():
        whole = block(x, style, (15, 20))
        monkeypatch.setattr("pack.py.ca2sis.model.SLICE", 7 * 8 * 2 * 16)
        torch.testing.assert_close(block(x, style, (15, 20)), whole, rtol=0, atol=1e-6)


def test_projections_folded_into_the_codes_change_nothing():
    layer = Attention(48, 8, 4).eval()
    x, style = torch.randn(2, 300, 48, generator=rng()), torch.randn(2, 5, 8, generator=rng(1))
    assert attention.folding_is_faster(300, 48, 5, 4) and not attention.folding_is_faster(30, 48, 5, 4)
    with torch.no_grad():
        torch.testing.assert_close(layer.reader(style, 300)(x), layer.reader(style, 30)(x), rtol=0, atol=1e-6)


def test_noise_makes_styles_and_absent_classes_are_zero(model):
    present = torch.tensor([[True, True, False, True, False]])
    s = model.sample_style(torch.randn(2, 16, generator=rng()), present)
    assert s.shape == (2, 5, 40) and (s[:, [2, 4]] == 0).all() and (s[:, [0, 1, 3]] != 0).any(dim=-1).all()
    assert not torch.equal(s[0], s[1])


def test_without_the_last_tanh_the_picture_is_clamped(model):
    image, mask = faces(1)
    z, s = model.encode_shape(mask), model.encode_style(image, mask)
    older = Generator(replace(TINY, tanh=False))
    older.load_state_dict(model.state_dict())
    linear = model.linear(z, s)
    torch.testing.assert_close(model.decode(z, s), linear.tanh(), rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(older.decode(z, s), linear.clamp(-1, 1), rtol=0, atol=1e-5)


def test_a_background_that_has_a_shape_code_is_kept():
    image, mask = faces(1)
    model = tiny(replace(TINY, mask_channels=5, noise_dim=0))
    assert model.encode_shape(mask).shape == (1, 5, 16) and model(image, mask).shape == (1, 3, 64, 64)


def test_every_weight_learns_from_the_picture():
    model = tiny(replace(TINY, noise_dim=0)).requires_grad_(True)
    image, mask = faces(2)
    model(image, mask).square().mean().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A bias right before a norm with one channel a group cancels; a matrix never does.
    assert not [name for name in silent if name.endswith("weight")], silent


def test_half_precision_runs():
    image, mask = faces(1)
    exact, model = tiny(), tiny().bfloat16()
    drawn = model(image.bfloat16(), mask.bfloat16())
    # Eight bits through some sixty layers of weights that do not damp; only a gross error shows here.
    assert drawn.dtype == torch.bfloat16 and (drawn.float() - exact(image, mask)).abs().mean() < 0.2


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda m, x, mask: m.encode_shape(torch.zeros(1, 151, 64, 64)), ["151 classes", "these weights 5", "Remap"]),
        (lambda m, x, mask: m.encode_style(x, torch.zeros(1, 151, 64, 64)), ["151 classes", "these weights 5"]),
        (lambda m, x, mask: m.encode_shape(mask[0]), ["shape [5, 64, 64]"]),
        (lambda m, x, mask: m.encode_shape(mask[:, :, :, :32]), ["32x64", "64x64", "proportions"]),
        (lambda m, x, mask: m.encode_style(x, mask[:, :, ::2, ::2]), ["64x64", "32x32"]),
        (lambda m, x, mask: m.encode_style(x.expand(2, -1, -1, -1), mask.expand(3, -1, -1, -1)), ["2 images and 3 maps"]),
        (lambda m, x, mask: m.encode_style(x[..., :60], mask[..., :60]), ["60x64", "multiples of 64"]),
        (lambda m, x, mask: m.decode(torch.zeros(1, 18, 256), torch.zeros(1, 5, 40)), ["18 x 256", "4 x 16"]),
        (lambda m, x, mask: m.decode(torch.zeros(1, 4, 16), torch.zeros(1, 19, 1280)), ["19 x 1280", "5 x 40"]),
        (lambda m, x, mask: m.decode(torch.zeros(2, 4, 16), torch.zeros(3, 5, 40)), ["2 shapes and 3 styles"]),
    ],
)
def test_what_does_not_fit_is_refused_with_both_sizes(model, call, words):
    with pytest.raises(ValueError) as error:
        call(model, *faces(1))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_sampling_without_a_noise_network_says_which_files_have_one():
    with pytest.raises(ValueError, match="no noise network"):
        Generator(replace(TINY, noise_dim=0), device="meta").sample_style(torch.zeros(1, 16), torch.ones(1, 5, dtype=torch.bool))
