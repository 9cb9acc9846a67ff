"""Paint by Example: our nodes against diffusers' pipeline on the same random weights, and what loading a large training checkpoint costs.

Both run ten steps with guidance on the same image, from files on the disk: on a small UNet of Stable Diffusion's widths, and (not when quick)
on one of its full size. The host reads with PyTorch's attention, as diffusers does, and as the host itself does on graphics cards; the other one,
its habit on processors, needs far more time and memory at the full size. Time is processor time of a run with everything loaded, memory what it
needs beyond that. Of loading it is the process's own memory; pages of mapped files, which the system may drop at any time, are counted apart:
they are what was read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import comfy.sample
import folder_paths
import torch
from comfy.ldm.modules.attention import attention_pytorch
from pack.benchmarks.measure import peak_growth, seconds
from pack.py.host import folders
from pack.py.host.paint_by_example import conditioning, loader, prepare
from pack.tests.host import exemplars

STEPS, CFG = 10, 5.0
MOST_TIME, MOST_MEMORY, MOST_LOADED = 0.95, 0.9, 1.2
SHAPES = {"a small UNet": ((320, 320), 1, 128), "Stable Diffusion 1.5's shape": ((320, 640, 1280, 1280), 2, 512)}
STATUS = Path("/proc/self/status")


def figures(quick: bool) -> Iterator[dict]:
    folders.register()
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        folder_paths.add_model_folder_path("paint_by_example", name, is_default=True)
        try:
            for title, (widths, depth, side) in list(SHAPES.items())[: 1 if quick else 2]:
                yield from _against_pipeline(folder, title, widths, depth, side)
            if STATUS.exists():
                yield from _loading(folder)
        finally:
            folder_paths.folder_names_and_paths["paint_by_example"][0].remove(name)


def _against_pipeline(folder: Path, title: str, widths: tuple[int, ...], depth: int, side: int) -> Iterator[dict]:
    pipe = exemplars.pipeline(widths=widths, depth=depth)
    pipe.save_pretrained(folder / "pipeline")
    torch.save(exemplars.published(pipe), folder / "published.ckpt")
    vae = exemplars.DiffusersVAE(pipe.vae)
    del pipe
    image = torch.rand(1, side, side, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, side, side)
    mask[:, side // 4 : side // 2, side // 4 : side // 2] = 1
    exemplar = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(1))

    def theirs() -> Callable[[], object]:
        pipe = exemplars.loaded(folder / "pipeline")
        return lambda: pipe(
            example_image=exemplar.movedim(-1, 1),
            image=image.movedim(-1, 1) * 2 - 1,
            mask_image=mask[:, None],
            num_inference_steps=STEPS,
            guidance_scale=CFG,
            output_type="latent",
        )

    def ours() -> Callable[[], object]:
        model, encoder, _ = loader.load("published.ckpt")
        options = model.model_options["transformer_options"]
        options["optimized_attention_override"] = lambda _, *args, **more: attention_pytorch(*args, **more)

        def run() -> None:
            positive, negative = conditioning.make_conditioning(encoder, exemplar)
            positive, negative, latent, _ = prepare.prepare(
                positive, negative, vae, image, mask, width=side, height=side, crop="whole picture"
            )
            noise = comfy.sample.prepare_noise(latent["samples"], 0)
            comfy.sample.sample(
                model, noise, STEPS, CFG, "euler", "ddim_uniform", positive, negative, latent["samples"], disable_pbar=True
            )

        return run

    measured = []
    for make in (ours, theirs):
        run = make()
        run()  # the first run also fetches weights and code
        measured.append(_measured(run))
        del run
    yield _at_most(f"Paint by Example, {title}: time against diffusers' pipeline", [m[0] for m in measured], MOST_TIME)
    if STATUS.exists():
        yield _at_most(
            f"Paint by Example, {title}: peak memory against diffusers' pipeline", [m[1] for m in measured], MOST_MEMORY
        )


def _loading(folder: Path) -> Iterator[dict]:
    """A gigabyte, most of it an optimizer's state."""
    state = exemplars.published(exemplars.pipeline())
    kept = sum(weight.numel() * weight.element_size() for name, weight in state.items() if name != "betas")
    rest = torch.zeros((1_000_000_000 - kept) // 4)
    path = folder / "large.ckpt"
    torch.save({"state_dict": state, "optimizer_states": [{"state": {0: {"exp_avg": rest}}}]}, path)
    size = path.stat().st_size
    del state, rest
    _, memory, mapped = _measured(lambda: loader.load(path.name))
    name = f"Paint by Example, loading a checkpoint of {size / 1e9:.1f} GB of which {kept / 1e6:.0f} MB are needed"
    yield _at_most(f"{name}: peak memory against what is kept", [memory, kept], MOST_LOADED)
    yield _at_most(f"{name}: read from the file against what is kept", [mapped, kept], MOST_LOADED)


def _at_most(name: str, pair: list[float], bound: float) -> dict:
    ratio = pair[0] / max(pair[1], 1e-9)
    return {"name": name, "value": ratio, "unit": "times", "target": f"<= {bound:g} times", "ok": ratio <= bound}


def _resident() -> tuple[int, int]:
    """Bytes of the process's own memory, and of mapped files, that are in memory."""
    if not STATUS.exists():
        return 0, 0
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    return tuple(int(lines[key].split()[0]) * 1024 for key in ("RssAnon", "RssFile"))  # type: ignore[return-value]


def _measured(call: Callable[[], object]) -> tuple[float, int, int]:
    """Processor seconds of a call, and how far own memory and mapped files grew while it ran."""
    times: list[float] = []
    own, mapped = peak_growth(lambda: times.append(seconds(call)), _resident)
    return times[0], own, mapped
