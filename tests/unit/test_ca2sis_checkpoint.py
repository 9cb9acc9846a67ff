"""Files of CA2-SIS weights: read off themselves, strict, the last step by vintage. Shapes decide, so most tensors here are empty."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from pack.py.ca2sis import checkpoint, codes
from pack.py.ca2sis.model import Config, Generator

TINY = Config(
    classes=3, mask_channels=2, style_dim=4, width=32, encoder_width=1, grid=(2, 2), mask_size=(8, 8),
    head_dims=(2, 2, 2, 2, 4), noise_dim=16, noise_width=8,
)  # fmt: skip


def empty(config=TINY, device="meta"):
    return {key: torch.zeros(shape, device=device) for key, shape in checkpoint.shapes(config).items()}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"noise_dim": 256, "tanh": False},
        {"noise_dim": 0, "tanh": False, "noise_width": 512},
        {"mask_channels": 3},
        {"grid": (16, 32), "mask_size": (128, 256)},
        {"width": 64, "encoder_width": 4, "head_dims": (64, 64, 64, 64, 32)},
    ],
)
def test_the_configuration_is_read_off_the_weights(change):
    config = replace(TINY, **change)
    assert checkpoint.prepare(empty(config)).config == config


def test_the_published_sizes_are_the_defaults():
    found = checkpoint.prepare(empty(Config()))
    assert found.config == Config() and len(found.weights) == 388


@pytest.mark.parametrize("noise_dim, tanh", [(16, True), (256, False), (0, False)])
def test_the_last_step_goes_by_the_vintage_unless_told(noise_dim, tanh):
    weights = empty(replace(TINY, noise_dim=noise_dim))
    assert checkpoint.prepare(weights).config.tanh is tanh
    assert checkpoint.prepare(weights, "tanh").config.tanh is True
    assert checkpoint.prepare(weights, "clamp").config.tanh is False
    assert checkpoint.prepare(weights, recorded="tanh").config.tanh is True
    assert checkpoint.prepare(weights, "clamp", recorded="tanh").config.tanh is False


def test_the_vintage_that_could_be_either_is_reported(caplog):
    with caplog.at_level(logging.WARNING):
        checkpoint.prepare(empty(replace(TINY, noise_dim=256)))
    assert "256 inputs" in caplog.text


def test_the_noise_network_can_be_left_out_and_does_not_change_the_last_step():
    found = checkpoint.prepare(empty(), noise=False)
    assert found.config == replace(TINY, noise_dim=0) and found.config.tanh
    assert not [key for key in found.weights if key.startswith("noise_encoder")]


@pytest.mark.parametrize("broken", ["noise_encoder.unshared.1.2.bias", "noise_encoder.shared.0.weight"])
def test_an_incomplete_noise_network_is_left_out_with_a_warning(broken, caplog):
    weights = empty()
    del weights[broken]
    with caplog.at_level(logging.WARNING):
        found = checkpoint.prepare(weights)
    assert found.config.noise_dim == 0 and "noise network" in caplog.text


@pytest.mark.parametrize(
    "key",
    [
        "cross3.transformer_blocks.0.attn1.to_q.weight",
        "res4.skip_connection.bias",
        "style_encoder.out.out_3.0.bias",
        "out_conv.bias",
    ],
)
def test_anything_else_missing_is_refused_by_name(key):
    weights = empty()
    del weights[key]
    with pytest.raises(ValueError) as error:
        checkpoint.prepare(weights, name="face.pth")
    assert key in str(error.value) and "face.pth" in str(error.value) and "missing" in str(error.value)


def test_unknown_tensors_and_wrong_shapes_are_refused_by_name():
    with pytest.raises(ValueError, match=r"1 unknown \(cross7\.norm\.weight\)"):
        checkpoint.prepare({**empty(), "cross7.norm.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"out_conv\.bias is \[4\], not \[3\]"):
        checkpoint.prepare({**empty(), "out_conv.bias": torch.zeros(4)})


def test_a_decisive_tensor_missing_or_contradicting_is_named():
    weights = empty()
    del weights["reshape_conv.weight"]
    with pytest.raises(ValueError, match=r"reshape_conv\.weight is missing"):
        checkpoint.prepare(weights)
    with pytest.raises(ValueError, match="3 style classes and 18 shape classes"):
        checkpoint.prepare({**empty(), "reshape_conv.weight": torch.zeros(512, 18, 1, 1)})
    with pytest.raises(ValueError, match="5 cells"):
        checkpoint.prepare({**empty(), "encs.encs.0.weight": torch.zeros(5, 64)})


def test_a_prefix_is_taken_off_and_the_average_preferred():
    other = {f"online_model.{key}": value for key, value in empty().items()}
    average = {f"ema_model.{key}": value for key, value in empty(replace(TINY, classes=4, mask_channels=3)).items()}
    found = checkpoint.prepare({**other, **average, "step": torch.zeros(()), "initted": torch.zeros(())})
    assert found.config.classes == 4 and set(found.weights) == set(checkpoint.shapes(found.config))
    with pytest.raises(ValueError, match="several generators"):
        checkpoint.prepare({**other, **{f"b.{key}": value for key, value in empty().items()}})


@pytest.mark.parametrize("weights", [{}, {"netD.0.weight": torch.zeros(3)}])
def test_a_file_without_a_generator_is_said_to_be_one(weights):
    with pytest.raises(ValueError, match="holds no generator"):
        checkpoint.prepare(weights)


def test_a_torch_file_and_ours_give_the_same_network(tmp_path):
    model = Generator(replace(TINY, tanh=False))
    weights = model.state_dict()
    torch.save(dict(weights), tmp_path / "latest_net_G.pth")
    torch.save({"generator": dict(weights), "epoch": 3}, tmp_path / "bundle.pth")
    checkpoint.save(tmp_path / "own.safetensors", weights, model.config)
    own = checkpoint.load(tmp_path / "own.safetensors")
    assert own.config == model.config, "a file of our own says its last step"
    assert checkpoint.load(tmp_path / "latest_net_G.pth").config.tanh
    for name in ("latest_net_G.pth", "bundle.pth", "own.safetensors"):
        built = checkpoint.load(tmp_path / name).build()
        assert not built.training
        for key, value in built.state_dict().items():
            torch.testing.assert_close(value, weights[key], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["face.pth", "face.safetensors"])
def test_a_web_page_saved_as_weights_is_recognised(tmp_path, name):
    (tmp_path / name).write_text("<!DOCTYPE html><html>Sign in</html>")
    with pytest.raises(ValueError, match=r"CA2-SIS: face.* cannot be read as weights: it is a web page"):
        checkpoint.load(tmp_path / name)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"a": Config}, tmp_path / "face.pth")
    with pytest.raises(ValueError, match=r"contains more than weights .*\. It was not loaded\."):
        checkpoint.load(tmp_path / "face.pth")


def test_the_discriminator_is_called_what_it_is(tmp_path):
    torch.save({"discriminator_0.model0.0.weight": torch.zeros(3)}, tmp_path / "latest_net_D.pth")
    with pytest.raises(ValueError, match="discriminator"):
        checkpoint.load(tmp_path / "latest_net_D.pth")


def test_codes_survive_the_disk(tmp_path):
    style = codes.Style(torch.randn(2, 3, 4), torch.tensor([[True, False, True]] * 2), ("a", "b b", "c"))
    shape = codes.Shape(torch.randn(1, 2, 4), torch.ones(1, 3, dtype=torch.bool), ("a", "b", "c"))
    for made in (style, shape):
        checkpoint.save_codes(tmp_path / "codes.safetensors", made)
        read = checkpoint.load_codes(tmp_path / "codes.safetensors")
        assert type(read) is type(made) and read.labels == made.labels
        torch.testing.assert_close(read.codes, made.codes, rtol=0, atol=0)
        torch.testing.assert_close(read.present, made.present, rtol=0, atol=0)
    checkpoint.save(tmp_path / "w.safetensors", empty(device="cpu"), TINY)
    with pytest.raises(ValueError, match="no style or shape codes"):
        checkpoint.load_codes(tmp_path / "w.safetensors")
