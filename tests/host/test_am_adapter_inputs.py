"""AM-Adapter's inputs and files: photographs, black masks, files of the other loader, the published code's peak, percent ranges of weights."""

from __future__ import annotations

import comfy.model_management
import pytest
import tiny
import torch
from einops import rearrange
from pack.py.am_adapter.agreement import PAPER_FORMULAS
from pack.py.am_adapter.checkpoint import matcher_metadata
from pack.py.am_adapter.model import ControlNeXt, ControlNeXtLayout, Matcher, MatcherLayout
from pack.py.host import folders, hooks
from pack.py.host.am_adapter import apply as am_adapter
from pack.py.host.am_adapter import cache, controlnext, files
from pack.py.host.am_adapter.inputs import encode_exemplars
from pack.py.host.run import current_run
from pack.py.semantic.palettes import named_palette
from pack.py.semantic.semantic_map import SemanticMap
from safetensors.torch import save_file

MATCHER = MatcherLayout(heads=2, widths=(4, 8, 4))
CONTROLNEXT = ControlNeXtLayout(out_channels=32, widths=(8, 8, 16), time_channels=16, time_width=16)


@pytest.fixture(autouse=True)
def empty_store():
    cache.store().clear()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model folder am_adapter with a ControlNeXt, its UNet weights and a matcher for the tiny model."""
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "am_adapter", ([str(tmp_path)], set(folders.EXTENSIONS)))
    generator = torch.Generator().manual_seed(0)

    def random(network):
        return {k: torch.randn(v.shape, generator=generator) * 0.3 for k, v in network.state_dict().items()}

    save_file(random(ControlNeXt(CONTROLNEXT)), tmp_path / "control.safetensors")
    save_file(random(Matcher(MATCHER)), tmp_path / "matcher.safetensors", matcher_metadata(MATCHER, PAPER_FORMULAS))
    return tmp_path


def exemplar(model, image=None, exemplar_map=None, target_map=None, **more):
    image = tiny.picture() if image is None else image
    exemplar_map = tiny.street_map(96, 128) if exemplar_map is None else exemplar_map
    target_map = tiny.street_map(ground=0.7) if target_map is None else target_map
    return am_adapter.apply(model, tiny.TinyVAE(), image, exemplar_map, target_map, **more)


# Exemplars


def encode(model, image, exemplar_map, target_map):
    return encode_exemplars(model, tiny.TinyVAE(), image, exemplar_map, target_map, None, "noise", 0, "Node")


def test_a_photograph_is_reduced_with_its_map(sd15, caplog):
    """12 megapixels become one, whatever the target's size; the classes stay where they are in the image."""
    image, semantic_map = tiny.picture(3024, 4032), tiny.street_map(3024, 4032)
    found = encode(sd15, image, semantic_map, tiny.street_map(128, 128))
    assert "Node: the exemplar has 4032x3024 pixels; it is reduced to 1182x887" in caplog.text
    assert found.latents.shape[-2:] == (110, 147) and found.labels.shape[-2:] == (880, 1176)
    small = torch.nn.functional.interpolate(semantic_map.labels[:, None].float(), found.labels.shape[-2:], mode="nearest-exact")[
        :, 0
    ]
    assert float((found.labels == small).float().mean()) > 0.98


def test_exemplars_up_to_a_megapixel_or_the_targets_size_are_not_reduced(sd15, caplog):
    assert encode(sd15, tiny.picture(1024, 1024), tiny.street_map(64, 64), tiny.street_map()).latents.shape[-2:] == (128, 128)
    large = encode(sd15, tiny.picture(1200, 1200), tiny.street_map(64, 64), tiny.street_map(1200, 1200))
    assert large.latents.shape[-2:] == (150, 150) and "reduced" not in caplog.text


def test_the_map_is_cropped_as_the_vae_crops_the_image(sd15):
    """500x333 pixels lose 4 columns and 5 rows around the middle; the map loses the same."""
    labels = torch.ones(1, 333, 500, dtype=torch.uint8)
    labels[:, 2:330, 2:498] = 3
    found = encode(sd15, tiny.picture(333, 500), SemanticMap(labels, named_palette("playground")), tiny.street_map())
    assert found.labels.shape == (1, 328, 496) and bool((found.labels == 3).all())


def test_a_black_mask_has_no_effect_and_is_warned_of(sd15, caplog):
    masked = exemplar(sd15, mask=torch.zeros(1, 64, 64))
    assert "Apply AM-Adapter: mask is 0 everywhere, so the exemplar has no effect. Load Image returns such a mask" in caplog.text
    torch.testing.assert_close(tiny.sample(masked, steps=1), tiny.sample(sd15, steps=1), rtol=1e-3, atol=1e-2)


def test_unknown_choices_are_named(sd15):
    for more, says in (
        ({"mode": "nope"}, "mode is 'nope'"),
        ({"parts": "left"}, "parts is 'left'"),
        ({"source": "x"}, "exemplar_features is"),
    ):
        with pytest.raises(ValueError, match=says):
            exemplar(sd15, **more)
    with pytest.raises(ValueError, match="exemplar_prompt is empty"):
        exemplar(sd15, prompt=[])


# The published code


def test_the_published_peak_is_taken_over_positive_and_negative_rows(sd15, folder, monkeypatch):
    """One layer of a call with both rows against the published arithmetic, every matrix built."""
    adapter = am_adapter.load("matcher.safetensors", "upstream")
    target, own = tiny.street_map(512, 512, ground=0.7), tiny.street_map(512, 512)
    patched = exemplar(sd15, tiny.picture(512, 512), own, target, adapter=adapter, levels="2", parts="down")
    key, seen = next(k for k in hooks.attention_blocks(sd15.model.diffusion_model) if k[:2] == ("input", 3)), []
    slot = patched.model_options["transformer_options"]["patches_replace"]["attn1"][key]

    def spy(q, k, v, options):
        out, run = slot(q, k, v, options), current_run(options)
        features = {c: found[0][1].layers[key] for c, found in slot.techniques[0].gathered(run).items()}
        seen.append((q, k, v, out, options["cond_or_uncond"], features))
        return out

    spied = patched.clone()
    spied.set_model_attn1_replace(spy, *key)
    tiny.sample(spied, steps=1, size=(64, 64))
    q, k, v, out, kinds, features = seen[0]
    assert sorted(kinds) == [0, 1] and set(features) == {0, 1} and q.shape[1] == 1024

    def split(x):
        return rearrange(x, "b l (n d) -> b n l d", n=2)

    keys, values = (torch.cat([features[chunk][i] for chunk in (0, 1)]) for i in (0, 1))
    logits = split(q) @ split(keys).transpose(-1, -2) * split(q).shape[-1] ** -0.5
    small = [
        torch.nn.functional.interpolate(m.labels[:, None].float(), (32, 32), mode="nearest").flatten() for m in (own, target)
    ]
    same = (small[0][:, None] == small[1][None, :]).float()  # rows are exemplar tokens
    volume = torch.cat([logits, same.expand(2, 1, -1, -1)], dim=1)
    encoder = adapter.patcher.model.encoders[0]
    with torch.inference_mode():
        p = rearrange(encoder(rearrange(volume, "b c l (h w) -> b l c h w", h=32)), "b l n h w -> b n l (h w)")
    cond, uncond = kinds.index(0), kinds.index(1)
    assert float(p[uncond].max()) != float(p[cond].max())
    self_logits = split(q) @ split(k).transpose(-1, -2) * split(q).shape[-1] ** -0.5
    biased = torch.cat([self_logits[cond], logits[cond] + p[cond] - p.max() / 4], dim=-1)
    expected = biased.softmax(dim=-1) @ torch.cat([split(v)[cond], split(values)[cond]], dim=1)
    torch.testing.assert_close(out[cond], rearrange(expected, "n l d -> l (n d)"), rtol=1e-3, atol=1e-3)
    plain = rearrange(self_logits[uncond].softmax(dim=-1) @ split(v)[uncond], "n l d -> l (n d)")
    torch.testing.assert_close(out[uncond], plain, rtol=1e-4, atol=1e-4)


# Files


def test_each_loader_begins_with_a_file_that_it_takes(folder):
    assert files.choices(am_adapter.LOAD) == (["control.safetensors", "matcher.safetensors"], "matcher.safetensors")
    assert files.choices(controlnext.LOAD)[1] == "control.safetensors"


def test_wrapped_weights_are_found(folder):
    from safetensors.torch import load_file

    weights = load_file(folder / "matcher.safetensors")
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in weights.items()}, "optimizer": {"x": torch.zeros(3)}}, folder / "a.ckpt"
    )
    found = am_adapter.load("a.ckpt").patcher.model.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())


def test_a_unet_file_is_checked(sd15, folder):
    key = "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    (folder / "page.safetensors").write_text("<html>404</html>")
    (folder / "none.safetensors").write_bytes(b"")
    torch.save({key: torch.zeros(1, dtype=torch.uint8).expand(1 << 18, 1 << 18)}, folder / "bomb.pt")
    torch.save({key: torch.zeros(4, 4, dtype=torch.int64)}, folder / "integers.pt")
    for file in ("page.safetensors", "none.safetensors", "bomb.pt", "integers.pt"):
        with pytest.raises(ValueError, match="Load ControlNeXt: unet_file"):
            controlnext.load("control.safetensors", file)
    save_file({key: torch.zeros(64, 64)}, folder / "other.safetensors")
    with pytest.raises(ValueError, match=r"shape \[64, 64\], but this MODEL \(TinySD15\) needs \[32, 32\]"):
        controlnext.apply(sd15, controlnext.load("control.safetensors", "other.safetensors", "replacement"), tiny.street_map())


# Percent ranges


def test_the_percent_range_bounds_the_unets_weights_too(sd15, folder):
    """Weights change in the second half only: the first step is the control's alone, and the base model stays what it was."""
    key = "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    weight = sd15.model_state_dict()[f"diffusion_model.{key}"]
    save_file({key: torch.full_like(weight, 0.5)}, folder / "unet.safetensors")
    plain, changed = (controlnext.load("control.safetensors", *more) for more in ((), ("unet.safetensors", "increments")))
    base, before = tiny.sample(sd15), weight.clone()

    def found(control, start, end, steps):
        calls = []
        model = controlnext.apply(sd15, control, tiny.street_map(), start_percent=start, end_percent=end)
        tiny.sample(model, steps=steps, callback=lambda step, denoised, x, total: calls.append(denoised.clone()))
        return calls

    nothing = found(changed, 0.998, 0.999, 2)
    assert torch.equal(nothing[-1], found(plain, 0.998, 0.999, 2)[-1])
    late, late_without = found(changed, 0.5, 1.0, 4), found(plain, 0.5, 1.0, 4)
    assert torch.equal(late[0], late_without[0]) and not torch.equal(late[-1], late_without[-1])
    whole, nearly = found(changed, 0.0, 1.0, 2), found(changed, 0.0, 0.9999, 2)
    torch.testing.assert_close(nearly[0], whole[0], rtol=1e-3, atol=1e-3)
    assert torch.equal(sd15.model_state_dict()[f"diffusion_model.{key}"], before) and torch.equal(tiny.sample(sd15), base)


# Other packs


def test_the_pass_over_exemplars_carries_what_packs_look_up_in_every_call(sd15):
    """Packs that patch the host's blocks read uuids and conditions of every call of any model."""
    seen = []
    block = sd15.model.diffusion_model.input_blocks[1][1].transformer_blocks[0]
    hook = block.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(dict(kwargs["transformer_options"])), with_kwargs=True
    )
    try:
        tiny.sample(exemplar(sd15), steps=1)
    finally:
        hook.remove()
    assert len(seen) == 2
    for options in seen:
        assert len(options["uuids"]) == len(options["cond_or_uncond"]) and "sigmas" in options
    assert seen[0]["uuids"][0] in seen[1]["uuids"], "the pass carries the uuid of its condition"


def test_a_compiled_model_keeps_its_features(sd15):
    patched = exemplar(sd15).clone()
    expected = tiny.sample(exemplar(sd15), steps=1)
    cache.store().clear()
    patched.add_object_patch("diffusion_model", torch.compile(patched.get_model_object("diffusion_model"), backend="eager"))
    torch.testing.assert_close(tiny.sample(patched, steps=1), expected, rtol=1e-3, atol=1e-2)
    assert len(cache.store()) == 1
    comfy.model_management.unload_all_models()
