"""The postfuse network against its formula, and what it does to a prompt."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pack.py.snf.model import Postfuse
from torch import nn

WIDTH = 12


@pytest.fixture
def network():
    made = Postfuse(WIDTH, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return made


def random(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(weights, t, v):
    """Section 3.3, line by line."""

    def core(x, name):
        w = {key.removeprefix(f"{name}."): value for key, value in weights.items()}
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        x = x * w["layernorm.weight"] + w["layernorm.bias"]
        x = x @ w["fc1.weight"].T + w["fc1.bias"]
        x = x * 0.5 * (1 + torch.erf(x / 2**0.5))
        return x @ w["fc2.weight"].T + w["fc2.bias"]

    h = core(torch.cat([t, v], -1), "mlp1") + t
    h = h + core(h, "mlp2")
    return F.layer_norm(h, h.shape[-1:], weights["layer_norm.weight"], weights["layer_norm.bias"], eps=1e-5)


def test_matches_the_formula(network):
    t, v = random(3, WIDTH), random(3, WIDTH, seed=2)
    torch.testing.assert_close(network(t, v), plain(network.state_dict(), t, v), rtol=1e-10, atol=1e-10)


def test_the_published_size():
    with torch.device("meta"):
        assert sum(weight.numel() for weight in Postfuse().parameters()) == 2_958_336


def test_only_the_named_rows_change_and_the_kth_place_takes_the_kth_reference(network):
    text, image = random(2, 9, WIDTH), random(2, WIDTH, seed=2)
    kept = text.clone()
    fused = network.fuse_prompt(text, image, [6, 2])
    assert torch.equal(text, kept), "the caller's prompt is not written to"
    others = [0, 1, 3, 4, 5, 7, 8]
    assert torch.equal(fused[:, others], text[:, others])
    for row in range(2):
        for place, reference in ((6, 0), (2, 1)):
            expected = plain(network.state_dict(), text[row, place], image[reference])
            torch.testing.assert_close(fused[row, place], expected, rtol=1e-10, atol=1e-10)


def test_no_reference_leaves_the_prompt_as_it_was(network):
    text = random(1, 9, WIDTH)
    assert torch.equal(network.fuse_prompt(text, random(0, WIDTH), []), text)


def test_the_result_has_the_dtype_of_the_prompt():
    network = Postfuse(WIDTH)
    text, image = random(1, 9, WIDTH).float(), random(1, WIDTH).half()
    assert network.fuse_prompt(text, image, [3]).dtype == torch.float32


@pytest.mark.parametrize(
    "text, image, positions, says",
    [
        ((1, 9, 8), (1, WIDTH), [1], "encoded prompt is"),
        ((9, WIDTH), (1, WIDTH), [1], "encoded prompt is"),
        ((1, 9, WIDTH), (1, 16), [1], "encoded references are"),
        ((1, 9, WIDTH), (2, WIDTH), [1], "1 persons in the prompt and 2 references"),
        ((1, 9, WIDTH), (2, WIDTH), [1, 1], "are for the same token"),
        ((1, 9, WIDTH), (1, WIDTH), [9], "outside of the prompt"),
        ((1, 9, WIDTH), (1, WIDTH), [-1], "outside of the prompt"),
    ],
)
def test_what_does_not_fit_is_explained(network, text, image, positions, says):
    with pytest.raises(ValueError, match=says):
        network.fuse_prompt(random(*text), random(*image), positions)


def test_every_layer_comes_from_the_operations_with_the_dtype_and_device():
    made = []

    class Operations:
        class Linear(nn.Linear):
            def __init__(self, *arguments, **named):
                made.append(named)
                super().__init__(*arguments, **named)

        class LayerNorm(nn.LayerNorm):
            def __init__(self, *arguments, **named):
                made.append(named)
                super().__init__(*arguments, **named)

    Postfuse(WIDTH, operations=Operations, dtype=torch.float16, device="meta")
    assert made == [{"dtype": torch.float16, "device": "meta"}] * 7
