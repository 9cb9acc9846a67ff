"""What a fused sampling run costs: how often its models are evaluated, and everything besides.

    EXEMPLARY_HOST=<ComfyUI folder> python -P benchmarks/snf_run.py [--quick]

Passes are counted on tiny models, a pass being one latent through one UNet. The published demonstration evaluates at 51 noise levels (its
sampler repeats the second of 50): 16 for the scene, 15 for both, 20 for the subject, two passes each, 132 in all. The rest of the cost is
measured on a full-size SD1.5 UNet with random weights, a latent of 64 x 64, both models at every evaluation: the most expensive stage.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

if "pack" not in sys.modules:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    import conftest  # noqa: F401  puts the pack under its name

import comfy.samplers
import torch
from pack.benchmarks.ifadapter_weight_free import FullSD15
from pack.benchmarks.measure import at_most, one_thread, show
from pack.py.host.snf.guider import FusionGuider
from pack.py.host.snf.run import Subject
from pack.py.snf.schedule import Stages
from tiny import conditioning, tiny_model  # on the path since the import above

PUBLISHED_PASSES = 132
MOST_BESIDES = 0.02
PUBLISHED_TIMESTEPS = [981, 961, *range(961, 0, -20)]


def figures(quick: bool) -> Iterator[dict]:
    yield _exactly("noise fusion, passes at the published setting", _passes(_published_sampler), PUBLISHED_PASSES)
    sampler = comfy.samplers.sampler_object("euler").sampler_function
    asked, least = _passes_and_least(sampler, 20)
    yield _exactly("noise fusion, passes of 20 Euler steps", asked, least)
    with one_thread():
        share = _besides(1 if quick else 4)
    yield at_most("noise fusion, everything besides the models, 64 x 64 latent, share of the run", share, "", MOST_BESIDES)


def _exactly(name: str, value: int, target: int) -> dict:
    return {"name": name, "value": value, "unit": "passes", "target": f"= {target}", "ok": value == target}


def _published_sampler(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Evaluates at the noise levels of the published code's sampler; its results do not matter here."""
    levels = model.inner_model.inner_model.model_sampling.sigmas
    for step, t in enumerate(PUBLISHED_TIMESTEPS):
        denoised = model(x, levels[t] * x.new_ones(x.shape[0]), **(extra_args or {}))
        if callback is not None:
            callback({"x": x, "i": step, "sigma": levels[t], "sigma_hat": levels[t], "denoised": denoised})
    return x


def _guider(scene, expert, stages: Stages) -> FusionGuider:
    person, text = conditioning(expert, "a person with a face"), conditioning(expert, "a person")
    return FusionGuider(
        scene, conditioning(scene, "a street"), conditioning(scene, ""), 5.0, [Subject(expert, person, text, stages=stages)]
    )


def _sampled(guider: FusionGuider, function, steps: int, cells: int) -> None:
    sigmas = comfy.samplers.calculate_sigmas(guider.model_patcher.get_model_object("model_sampling"), "normal", steps)
    noise = torch.randn(1, 4, cells, cells, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        guider.sample(noise, torch.zeros_like(noise), comfy.samplers.KSAMPLER(function), sigmas, disable_pbar=True, seed=0)


def _watched(model, note):
    """A clone that reports the rows and the processor time of every call."""

    def call(apply_model, args):
        start = time.process_time()
        out = apply_model(args["input"], args["timestep"], **args["c"])
        note(args["input"].shape[0], time.process_time() - start)
        return out

    clone = model.clone()
    clone.set_model_unet_function_wrapper(call)
    return clone


def _passes(function, steps: int = 50) -> int:
    return _passes_and_least(function, steps)[0]


def _passes_and_least(function, steps: int) -> tuple[int, int]:
    """(passes, two for every model that the stage of every evaluation needs)."""
    rows: list[int] = []
    scene, expert = (_watched(tiny_model(seed=seed), lambda count, _: rows.append(count)) for seed in (0, 1))
    guider = _guider(scene, expert, Stages())
    _sampled(guider, function, steps, 8)
    needed = [2 if isinstance(e.shares, torch.Tensor) else 1 for e in guider.record.evaluations]
    return sum(rows), 2 * sum(needed)


def _besides(steps: int) -> float:
    inside: list[float] = []
    model = _watched(tiny_model(FullSD15), lambda _, seconds: inside.append(seconds))
    guider = _guider(model, model, Stages(0.0, 1.0))
    euler = comfy.samplers.sampler_object("euler").sampler_function
    spent: list[float] = []

    def timed(wrapped, *args, **kwargs):
        start = time.process_time()
        out = euler(wrapped, *args, **kwargs)
        spent.append(time.process_time() - start)
        return out

    _sampled(guider, timed, 1, 64)  # the first run fills caches
    inside.clear(), spent.clear()
    _sampled(guider, timed, steps, 64)
    return 1 - sum(inside) / sum(spent)


if __name__ == "__main__":
    show(figures("--quick" in sys.argv[1:]))
