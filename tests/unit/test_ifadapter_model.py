"""IFAdapter's networks: the mask that shrinks, the norms, the position of a box, tokens of both kinds of rows, the description."""

from __future__ import annotations

import json
import math

import pytest
import torch
from pack.py.ifadapter.model import SDXL, Config, IFAdapter, Layer, PositionNet, Resampler, RMSNorm, visible_words, weight_shapes

TINY = Config(
    layers=(Layer("a", ("output", 1, 0), 32, 4), Layer("b", ("middle", 0, 0), 16, 2)),
    encoders=(("l", 24),),
    text_layers=(-1, -2),
    dim=16,
    depth=2,
    heads=2,
    dim_head=8,
    phrase_length=9,
    position_width=12,
    reduction=4,
)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def randomised(network, seed=0):
    """Every parameter drawn, those that start at zero too: zeros would hide errors."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=rng(seed + parameter.numel())))
    return network.eval()


def phrases(config, count, seed=1):
    shape = (count, len(config.text_layers), config.phrase_length, config.width)
    eot = torch.randn(count, 1, config.width, generator=rng(seed + 1))
    return torch.randn(shape, generator=rng(seed)), eot


def positions(mask):
    return [row.nonzero().flatten().tolist() for row in mask]


def test_each_layer_of_the_resampler_sees_one_word_less():
    seen = visible_words(torch.tensor([7]), 77, 4)[:, 0]
    assert positions(seen) == [[1, 2, 3, 4, 5], [1, 2, 3, 5], [1, 2, 5], [1, 5]]


def test_a_clean_mask_shows_every_layer_all_words():
    seen = visible_words(torch.tensor([7, 3]), 77, 3, whole_phrase=True)
    assert positions(seen[:, 0]) == [[1, 2, 3, 4, 5]] * 3 and positions(seen[:, 1]) == [[1]] * 3


@pytest.mark.parametrize("count, first", [(0, []), (2, []), (3, [1]), (77, list(range(1, 76)))])
def test_phrases_of_no_word_of_one_word_and_of_full_length(count, first):
    seen = visible_words(torch.tensor([count]), 77, 4)[:, 0]
    assert positions(seen)[0] == first
    if len(first) < 2:
        assert positions(seen) == [first] * 4


@pytest.mark.parametrize("count", range(12))
def test_the_mask_is_what_cutting_one_list_in_place_gives(count):
    """The published procedure, literally: one list that every layer cuts."""
    mask, expected = [1] * count + [0] * (11 - count), []
    for _ in range(5):
        end = sum(mask) - 1
        mask[0] = 0
        mask[end] = 0
        expected.append([place for place, one in enumerate(mask) if one])
    assert positions(visible_words(torch.tensor([count]), 11, 5)[:, 0]) == expected


def test_the_mask_does_not_change_the_counts_it_is_made_from():
    counts = torch.tensor([5, 9])
    first = visible_words(counts, 12, 4)
    assert counts.tolist() == [5, 9]
    assert torch.equal(first, visible_words(counts, 12, 4))


def test_the_norm_of_an_untrained_adapter_divides_by_the_root_mean_square():
    x = torch.randn(3, 8, generator=rng())
    torch.testing.assert_close(RMSNorm(8)(x), x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt())


def test_the_norm_survives_half_precision_values_whose_square_overflows():
    assert RMSNorm(4)(torch.full((1, 4), 1000.0, dtype=torch.float16)).tolist() == [[1.0] * 4]


def test_a_box_is_written_by_frequency_then_sine_and_cosine_then_corner():
    box = (0.1, 0.2, 0.6, 0.9)
    found = PositionNet(8, 8).fourier(torch.tensor([box]))[0]
    expected = [wave(100 ** (f / 64) * corner) for f in range(64) for wave in (math.sin, math.cos) for corner in box]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=2e-5)  # 93 radians in float32


def test_hidden_words_do_not_count_and_text_layers_do_not_mix():
    network = randomised(Resampler(16, 2, 2, 8, in_width=24, out_width=24))
    x, _ = phrases(TINY, 1)
    tokens = network(x, torch.tensor([5]))
    other = x.clone()
    other[:, :, [0, 4, 5, 6, 7, 8]] = 9.0  # start, end and padding; words are at 1 2 3
    torch.testing.assert_close(network(other, torch.tensor([5])), tokens, rtol=0, atol=1e-6)
    other = x.clone()
    other[:, 1] = 9.0
    changed = network(other, torch.tensor([5])) - tokens
    assert changed[:, :4].abs().max() < 1e-6 < 1e-2 < changed[:, 4:].abs().max()


def test_the_switch_to_the_clean_mask_matters_from_two_words_on():
    network = randomised(Resampler(16, 2, 2, 8, in_width=24, out_width=24))
    x, _ = phrases(TINY, 1)
    for count, same in ((3, True), (4, False), (5, False)):
        found = [network(x, torch.tensor([count]), clean) for clean in (False, True)]
        assert torch.allclose(*found, atol=1e-6) == same, count


def test_rows_of_both_kinds_carry_the_boxes_and_only_cond_rows_the_phrases():
    network = randomised(IFAdapter(TINY))
    x, eot = phrases(TINY, 3)
    counts, boxes = torch.tensor([3, 9, 6]), torch.rand(3, 4, generator=rng())
    uncond, cond = network.conditional_and_unconditional_tokens(x, eot, counts, boxes)
    assert uncond.shape == cond.shape == (3, TINY.appearance_tokens + 1, 24)
    torch.testing.assert_close(cond, network.tokens(x, eot, counts, boxes))
    zero = torch.zeros_like
    torch.testing.assert_close(uncond, network.tokens(zero(x), zero(eot), zero(counts), boxes), rtol=0, atol=1e-6)
    torch.testing.assert_close(uncond[:, -1], network.pos_net(boxes))
    torch.testing.assert_close(cond[:, -1], eot[:, 0] + network.pos_net(boxes))


def test_no_instances_give_no_tokens():
    network = randomised(IFAdapter(TINY))
    x, eot = phrases(TINY, 0)
    found = network.tokens(x, eot, torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
    assert found.shape == (0, TINY.appearance_tokens + 1, 24)


def test_the_published_adapter_has_the_published_size_names_and_places():
    found = weight_shapes(SDXL)
    size = {
        group: sum(math.prod(s) for n, s in found.items() if n.startswith(group)) for group in ("text_proj", "adapter", "pos")
    }
    assert size == {"text_proj": 429_982_208, "adapter": 87_208_768, "pos": 2_559_488}
    assert found["adapter_modules.127.cbam.cam.linear.0.weight"] == (80, 1280)
    assert found["adapter_modules.49.alpha"] == ()
    assert found["text_proj_model.layers.3.0.to_kv.weight"] == (5120, 2560)
    keys = [layer.key for layer in SDXL.layers]
    assert " ".join(keys) == "49 51 53 55 69 71 73 75 89 91 93 95 121 123 125 127"
    assert {layer.place[:2] for layer in SDXL.layers} == {("output", 0), ("output", 1), ("output", 2), ("middle", 0)}
    assert (SDXL.width, SDXL.appearance_tokens) == (2048, 12)


@pytest.mark.parametrize("config", [SDXL, TINY], ids=["sdxl", "tiny"])
def test_a_description_survives_json(config):
    assert Config.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"layers": []}, "there are no layers"),
        ({"colour": 1}, "colour, which this version does not know"),
        ({"layers": [{"key": "a"}]}, "damaged"),
        ({"heads": 0}, "heads is 0"),
        ({"encoders": []}, "no text encoders"),
        ({"gate_kernel": 4}, "gate_kernel is 4, not odd"),
        ({"layers": [{"key": "a.b", "place": ["middle", 0, 0], "channels": 30, "heads": 4}]}, "30 channels for 4 heads"),
    ],
)
def test_a_wrong_description_says_what_is_wrong(change, complaint):
    data = {**json.loads(TINY.to_json()), **change}
    with pytest.raises(ValueError, match=complaint):
        Config.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["{", "[]", "{}", "null"])
def test_a_description_that_is_none_says_so(text):
    with pytest.raises(ValueError, match="description"):
        Config.from_json(text)
