"""The weight rule against what the recorded files store of it, and the runner against outputs that hold and that do not."""

from __future__ import annotations

import json
import math

import pytest
import torch
from pack.tests.conformance import registry, rule, runner
from safetensors.torch import save_file

VECTORS = {path.stem: runner.read(path) for path in sorted(runner.VECTORS.glob("*.safetensors"))}
LISTED = [name for name, vector in VECTORS.items() if 0 < sum(map(math.prod, vector.json("weight_keys").values())) < 60_000_000]
CHECKED = [name for name, vector in VECTORS.items() if vector.json("weight_check")]
MADE = [name for name, vector in VECTORS.items() if vector.json("rule_inputs")]


@pytest.mark.parametrize("name", LISTED)
def test_part_b_weights_and_inputs_follow_the_rule(name):
    vector = VECTORS[name]
    made = rule.weights(vector.json("weight_keys"), vector.seed, vector.gain)
    assert runner.check_rule(vector, made, vector.inputs()) == []


@pytest.mark.parametrize("name", CHECKED)
def test_part_a_weights_follow_the_rule(name):
    vector = VECTORS[name]
    recorded = {key: item for key, item in vector.json("weight_check").items() if key != "__all__"}
    made = rule.weights({key: item["shape"] for key, item in recorded.items()}, vector.seed, vector.gain)
    assert recorded and rule.check_weights(made, recorded) == []


@pytest.mark.parametrize("name", MADE)
def test_inputs_made_by_the_rule_match_their_record(name):
    vector = VECTORS[name]
    inputs, tables = vector.inputs(), vector.group("chk.in")
    assert set(tables) == set(vector.json("rule_inputs"))
    assert all(rule.check_input(inputs[key], table) for key, table in tables.items())


def test_stored_matcher_weights_are_there_to_compare_with():
    assert sum(bool(vector.group("w")) for vector in VECTORS.values()) == 6


def test_a_wrong_seed_a_wrong_gain_and_a_missing_key_are_seen():
    vector = VECTORS["am_matcher_mid_sq6"]
    shapes = vector.json("weight_keys")
    assert runner.check_rule(vector, rule.weights(shapes, vector.seed + 1, 1.0), {})
    assert runner.check_rule(vector, rule.weights(shapes, vector.seed, 0.9), {})
    assert rule.check_weights({}, {"a": {"shape": [1], "first": 0, "last": 0, "sum": 0, "abs_sum": 0}}) == ["a is missing"]
    made = {"a": torch.ones(3)}
    assert rule.check_weights(made, {"__all__": 3.0}) == [] and rule.check_weights(made, {"__all__": 3.1})


def test_one_dimensional_weights_are_centred_at_one_except_the_zero_centred_norms():
    assert float(rule.weight("norm.weight", [4096], 1, 1.0).mean()) == pytest.approx(1, abs=0.01)
    assert float(rule.weight("q_norm.weight", [4096], 1, 1.0).mean()) == pytest.approx(0, abs=0.01)
    assert float(rule.weight("norm.bias", [4096], 1, 1.0).mean()) == pytest.approx(0, abs=0.01)


def test_every_subsample_text_gives_the_recorded_shape():
    full = {"channels": 1280, "tokens": 256}
    text = "tokens stride 4 of axis 1, channels stride 7 of axis 2"
    assert runner.subsample(torch.zeros(2, full["tokens"], full["channels"]), text).shape == (2, 64, 183)
    assert runner.subsample(torch.zeros(2, 256, 1280), "channels 0,7,14,... of axis 2").shape == (2, 256, 183)


@pytest.fixture
def doubling(monkeypatch, tmp_path):
    """A technique that doubles its input, and a file recorded of it."""
    monkeypatch.setattr(registry, "_ADAPTERS", {})
    metadata = {"technique": "doubling", "case": "twice_1", "seed": "7", "gain": "1.0", "tolerance": json.dumps({"out.y": 1e-6})}
    metadata["weight_keys"] = json.dumps({"a.weight": [2, 3]})
    path = tmp_path / "doubling.safetensors"
    save_file({"in.x": torch.arange(4.0), "out.y": 2 * torch.arange(4.0)}, path, metadata)
    return path


def test_a_file_without_an_adapter_is_pending_and_says_so_in_the_exit_code(doubling, capsys):
    assert runner.main([str(doubling)]) == 2
    assert "PENDING" in capsys.readouterr().out


def test_a_matching_output_passes_and_prints_its_difference_and_tolerance(doubling, capsys):
    registry.register("doubling", "twice")(lambda weights, inputs, config: {"y": 2 * inputs["x"]})
    assert runner.main([str(doubling.parent)]) == 0
    assert "ok   y" in (out := capsys.readouterr().out) and "tolerance 1e-06" in out


@pytest.mark.parametrize("wrong", [lambda x: 2 * x + 1e-5, lambda x: x[:2], lambda x: x * math.nan])
def test_a_miss_fails(doubling, wrong, capsys):
    registry.register("doubling", "twice")(lambda weights, inputs, config: {"y": wrong(inputs["x"])})
    assert runner.main([str(doubling)]) == 1
    assert "MISS y" in capsys.readouterr().out


def test_an_output_that_is_not_computed_fails(doubling):
    registry.register("doubling", "twice")(lambda weights, inputs, config: {})
    assert runner.main([str(doubling)]) == 1


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\xff" * 64])
def test_a_damaged_file_is_a_failure_and_not_a_crash(tmp_path, content, capsys):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    assert runner.main([str(path)]) == 1
    assert "broken.safetensors cannot be read" in capsys.readouterr().out


def test_the_longest_kind_that_fits_wins(monkeypatch):
    monkeypatch.setattr(registry, "_ADAPTERS", {})
    registry.register("t", "am")(short := lambda weights, inputs, config: {})
    registry.register("t", "am_aug")(long := lambda weights, inputs, config: {})
    assert registry.find("t", "am_aug_L64").compute is long
    assert registry.find("t", "am_concat").compute is short
    assert registry.find("other", "am_aug") is None
