"""The shared training loop: a run that is cut off and resumed ends where an uninterrupted one ends."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pack.lab.training.loop import Schedule, fit, generator_for

pytest.importorskip("accelerate", reason="training needs accelerate (requirements-dev.txt)")

SCHEDULE = Schedule(steps=30, learning_rate=0.05, warmup=5, ema=0.9, checkpoint_every=10, mixed_precision="no", seed=3)


def line() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(2, 1)


def problem(model):
    def loss(step, rng):
        x = torch.randn(16, 2, generator=rng)
        return (model(x)[:, 0] - (3 * x[:, 0] - 2 * x[:, 1])).square().mean()

    return loss


def test_it_learns_and_leaves_the_average_in_the_module(tmp_path):
    model = line()
    schedule = dataclasses.replace(SCHEDULE, steps=300)
    fit("line", {"line": model}, problem(model), schedule, tmp_path)
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[3.0, -2.0]]), atol=0.1, rtol=0)
    average = torch.load(tmp_path / "line.ckpt", weights_only=True)["average"]
    assert torch.equal(model.weight.detach(), average["line.weight"])


def test_a_resumed_run_ends_where_an_uninterrupted_one_ends(tmp_path):
    whole = line()
    fit("line", {"line": whole}, problem(whole), SCHEDULE, tmp_path / "whole")

    broken, calls = line(), []

    def interrupted(step, rng):
        if step == 17:
            raise KeyboardInterrupt
        return problem(broken)(step, rng)

    with pytest.raises(KeyboardInterrupt):
        fit("line", {"line": broken}, interrupted, SCHEDULE, tmp_path / "broken")
    resumed = line()
    fit("line", {"line": resumed}, problem(resumed), SCHEDULE, tmp_path / "broken", every={5: calls.append})
    assert torch.equal(resumed.weight, whole.weight)
    assert calls == [15, 20, 25, 30], "resumed at the checkpoint of step 10"


def test_frozen_parameters_stay(tmp_path):
    model = line()
    model.bias.requires_grad_(False)
    before = model.bias.clone()
    fit("line", {"line": model}, problem(model), SCHEDULE, tmp_path)
    assert torch.equal(model.bias, before)


def test_the_rate_warms_up_and_decays():
    rates = [SCHEDULE.rate(step) for step in range(30)]
    assert rates[0] == pytest.approx(0.2) and max(rates) == 1.0
    assert rates[-1] < 0.1 and rates[5:] == sorted(rates[5:], reverse=True)


def test_steps_have_random_numbers_of_their_own():
    a, b, again = (torch.rand(3, generator=generator_for(1, step)) for step in (4, 5, 4))
    assert torch.equal(a, again) and not torch.equal(a, b)


def test_accumulated_batches_are_one_large_batch(tmp_path):
    def batches(numbers):
        model = line()

        def loss(number, rng):
            x = torch.cat([torch.randn(4, 2, generator=generator_for(7, k)) for k in numbers(number)])
            return (model(x)[:, 0] - x[:, 0]).square().mean()

        return model, loss

    whole, of_whole = batches(lambda number: (2 * number, 2 * number + 1))
    parts, of_parts = batches(lambda number: (number,))
    one = fit("whole", {"m": whole}, of_whole, SCHEDULE, tmp_path)
    two = fit("parts", {"m": parts}, of_parts, dataclasses.replace(SCHEDULE, accumulation=2), tmp_path)
    assert one == pytest.approx(two, rel=1e-4)
    torch.testing.assert_close(whole.weight, parts.weight, rtol=1e-4, atol=1e-5)


def test_two_processes_train_as_one_with_the_same_global_batch(tmp_path):
    script = Path(__file__).resolve().parents[1] / "two_processes.py"
    # `--cpu` would need MPI to start a second process; without a graphics card --multi_gpu means two processes on the CPU.
    launch = [sys.executable, "-P", "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--dynamo_backend", "no", "--mixed_precision", "no"]
    done = subprocess.run([*launch, str(script), str(tmp_path), "1"], capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    sys.path.insert(0, str(script.parent))
    try:
        from two_processes import train
    finally:
        sys.path.remove(str(script.parent))
    losses, network = train(tmp_path / "one", accumulation=2)
    assert found["processes"] == 2
    # The two sum the same batches in another order.
    assert found["losses"] == pytest.approx(losses, rel=1e-4)
    assert found["sum"] == pytest.approx(float(sum(p.abs().sum() for p in network.parameters())), rel=1e-4)


def test_sample_pictures_see_the_average_and_leave_the_training_alone(tmp_path):
    plain, watched, seen = line(), line(), []
    fit("plain", {"m": plain}, problem(plain), SCHEDULE, tmp_path)
    fit(
        "watched", {"m": watched}, problem(watched), SCHEDULE, tmp_path, every={10: lambda _: seen.append(watched.weight.clone())}
    )
    assert torch.equal(plain.weight, watched.weight) and torch.equal(seen[-1], watched.weight)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    model = line()

    def breaks(step, rng):
        return problem(model)(step, rng) * (float("nan") if step == 17 else 1.0)

    with pytest.raises(ValueError, match=r"stopped at step 18, where the loss is nan.*line.ckpt of an earlier step is kept"):
        fit("line", {"line": model}, breaks, SCHEDULE, tmp_path)
    kept = torch.load(tmp_path / "line.ckpt", weights_only=True)
    assert kept["step"] == 10 and all(bool(w.isfinite().all()) for w in kept["average"].values())


def test_weights_that_overflow_are_not_written(tmp_path):
    model = line()
    schedule = dataclasses.replace(SCHEDULE, learning_rate=1e39, warmup=1, steps=1)
    with pytest.raises(ValueError, match=r"a gradient or a weight is NaN or infinite. No checkpoint was written"):
        fit("line", {"line": model}, problem(model), schedule, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_average_of_decay_zero_is_the_parameters(tmp_path):
    model, seen = line(), []
    schedule = dataclasses.replace(SCHEDULE, ema=0.0)
    fit("line", {"line": model}, problem(model), schedule, tmp_path, every={30: lambda _: seen.append(model.weight.clone())})
    kept = torch.load(tmp_path / "line.ckpt", weights_only=True)
    assert torch.equal(kept["average"]["line.weight"], kept["modules"]["line"]["weight"]) and torch.equal(seen[0], model.weight)


def test_the_first_checkpoint_of_ctrl_c_is_kept_and_the_exit_code_says_so(tmp_path, caplog):
    from dataclasses import dataclass

    from pack.lab.training.recipe import TrainingRecipe, run_recipe

    @dataclass(frozen=True)
    class Recipe(TrainingRecipe):
        output: str

    (tmp_path / "r.json").write_text(json.dumps({"output": str(tmp_path / "out")}))

    def interrupted(recipe):
        raise KeyboardInterrupt

    assert run_recipe(Recipe, interrupted, tmp_path / "r.json") == 130
    assert "The last checkpoint is kept" in caplog.text
