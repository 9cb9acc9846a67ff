"""IFAdapter's files: three layouts give the same weights, and what does not fit says what was found and what is needed."""

from __future__ import annotations

import os

import pytest
import torch
from pack.py.ifadapter import checkpoint
from pack.py.ifadapter.model import SDXL, Config, Layer, weight_shapes
from safetensors import safe_open
from safetensors.torch import save_file

TINY = Config(
    layers=(Layer("49", ("output", 0, 0), 32, 4),),
    encoders=(("l", 16), ("g", 8)),
    text_layers=(-2,),
    dim=16,
    depth=1,
    heads=2,
    dim_head=8,
    position_width=12,
    reduction=4,
)


def weights(config=TINY, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=rng) for name, shape in weight_shapes(config).items()}


def nested(state):
    """As published: a state dict per group."""
    groups = {}
    for name, weight in state.items():
        group, _, rest = name.partition(".")
        groups.setdefault(group, {})[rest] = weight
    return groups


@pytest.fixture
def small_release(monkeypatch):
    """The published file is 2 GB: a file without a description is taken for a small adapter instead."""
    monkeypatch.setattr(checkpoint, "SDXL", TINY)


def test_the_published_pickle_its_conversion_and_our_layout_are_the_same(tmp_path, small_release):
    state = weights()
    torch.save(nested(state), tmp_path / "spd_adapter.bin")
    save_file(state, tmp_path / "plain.safetensors")
    converted = checkpoint.convert(tmp_path / "spd_adapter.bin")
    assert converted == tmp_path / "spd_adapter.safetensors"
    for path in (tmp_path / "spd_adapter.bin", tmp_path / "plain.safetensors", converted):
        config, found = checkpoint.read(path)
        assert config == TINY and found.keys() == state.keys()
        assert all(torch.equal(found[name], state[name]) for name in state)


def test_the_packs_format_describes_itself(tmp_path):
    checkpoint.save(tmp_path / "a.safetensors", TINY, weights())
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata()["format"] == checkpoint.FORMAT
    assert checkpoint.read(tmp_path / "a.safetensors")[0] == TINY


def test_a_conversion_writes_over_nothing(tmp_path, small_release):
    checkpoint.save(tmp_path / "a.safetensors", TINY, weights())
    torch.save(nested(weights(seed=1)), tmp_path / "a.bin")
    before = (tmp_path / "a.safetensors").read_bytes()
    for source in ("a.bin", "a.safetensors"):
        with pytest.raises(ValueError, match=r"a\.safetensors exists already"):
            checkpoint.convert(tmp_path / source)
    assert (tmp_path / "a.safetensors").read_bytes() == before


def test_the_command_converts_and_says_what_stopped_it(tmp_path, small_release, caplog):
    torch.save(nested(weights()), tmp_path / "spd_adapter.bin")
    with caplog.at_level("INFO", logger="exemplary"):
        assert checkpoint.main([str(tmp_path / "spd_adapter.bin")]) == 0
        assert checkpoint.main([str(tmp_path / "spd_adapter.bin")]) == 1
    assert "spd_adapter.safetensors is written" in caplog.text and "exists already" in caplog.text


def test_missing_extra_and_misshapen_weights_are_named():
    state = weights()
    alpha = state.pop("adapter_modules.49.alpha")
    state["adapter_modules.51.alpha"] = alpha
    state["text_proj_model.latents"] = torch.zeros(1, 4, 99)
    with pytest.raises(ValueError) as error:
        checkpoint.check_state_dict(state, TINY)
    text = str(error.value)
    assert "1 of 39 weights are missing (adapter_modules.49.alpha)" in text
    assert "1 weights do not belong to it (adapter_modules.51.alpha)" in text
    assert "text_proj_model.latents is [1, 4, 99], expected [1, 4, 16]" in text
    assert "1 layers (49) for text encoders l + g" in text


def test_a_long_list_of_names_is_cut():
    with pytest.raises(ValueError, match=r"38 of 39 weights are missing \(.*, .*, .* and 35 more\)"):
        checkpoint.check_state_dict({"text_proj_model.latents": torch.zeros(1, 4, 16)}, TINY)


def test_an_adapter_of_another_size_is_not_taken_for_the_published_one():
    with pytest.raises(ValueError, match=r"16 layers \(49, 51, 53 and 13 more\).*expected \[1, 4, 2560\]"):
        checkpoint.parse_state_dict(weights())
    assert len(weight_shapes(SDXL)) == 57 + 6 + 16 * 12


@pytest.mark.parametrize(
    "content, complaint",
    [
        (
            {"image_proj": {}, "ip_adapter": {"1.weight": torch.zeros(1)}},
            "contains ip_adapter; an IFAdapter file contains the groups",
        ),
        ({"text_proj_model": {"latents": torch.zeros(1)}}, "contains text_proj_model; an IFAdapter file"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path, content, complaint):
    torch.save(content, tmp_path / "other.bin")
    with pytest.raises(ValueError, match=f"other.bin: .*{complaint}"):
        checkpoint.read(tmp_path / "other.bin")


@pytest.mark.parametrize("name", ["a.bin", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>404</html>", bytes(range(256)) * 8])
def test_a_corrupt_file_says_so(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} cannot be read as weights"):
        checkpoint.read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.bin", "a.safetensors"])
def test_a_file_that_was_cut_off_says_so(tmp_path, name, small_release):
    whole = tmp_path / name
    if name == "a.bin":
        torch.save(nested(weights()), whole)
    else:
        checkpoint.save(whole, TINY, weights())
    whole.write_bytes(whole.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=f"{name} cannot be read as weights"):
        checkpoint.read(whole)


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"none\.bin cannot be read"):
        checkpoint.read(tmp_path / "none.bin")


class Command:
    """What a malicious pickle holds."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"text_proj_model": Command()}, tmp_path / "bad.bin")
    with pytest.raises(ValueError, match=r"bad\.bin .*contains more than weights"):
        checkpoint.read(tmp_path / "bad.bin")
    assert not (tmp_path / "executed").exists()


def test_a_damaged_description_is_named(tmp_path):
    save_file(weights(), tmp_path / "a.safetensors", metadata={checkpoint.CONFIG_KEY: "{"})
    with pytest.raises(ValueError, match=r"a\.safetensors: The adapter's description is not JSON"):
        checkpoint.read(tmp_path / "a.safetensors")


def test_whole_numbers_are_no_weights():
    state = weights()
    state["adapter_modules.49.alpha"] = torch.zeros((), dtype=torch.int64)
    with pytest.raises(ValueError, match=r"adapter_modules\.49\.alpha is torch\.int64"):
        checkpoint.check_state_dict(state, TINY)


def test_float8_weights_become_half_precision_and_sft_is_safetensors(tmp_path, small_release):
    state = weights()
    save_file({name: weight.to(torch.float8_e4m3fn) for name, weight in state.items()}, tmp_path / "a.sft")
    _, found = checkpoint.read(tmp_path / "a.sft")
    assert {weight.dtype for weight in found.values()} == {torch.float16}
    assert all(torch.equal(found[name], state[name].to(torch.float8_e4m3fn).half()) for name in state)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_a_failed_training_are_refused(tmp_path, small_release, value):
    state = weights()
    state["adapter_modules.49.alpha"] = torch.tensor(value)
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a\.safetensors: The weight adapter_modules\.49\.alpha contains NaN or infinite"):
        checkpoint.read(tmp_path / "a.safetensors")
