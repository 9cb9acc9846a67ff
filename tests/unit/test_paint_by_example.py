"""Paint by Example's mathematics: the mapper, the exemplar's way to its token, files, attention, training."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pack.lab.training.augmentation import Augmentation
from pack.py.paint_by_example import checkpoint, exemplar, training
from pack.py.paint_by_example import context as attention
from pack.py.paint_by_example.model import Config, ExemplarMapper
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

TINY = Config(width=32, context=24, blocks=2)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def published_mapper(seed=0):
    """The published names of a tiny mapper, q and k rows and all."""
    c, rng = TINY.width, torch.Generator().manual_seed(seed)
    sizes = {"learnable_vector": (1, 1, TINY.context), "proj_out.weight": (TINY.context, c), "proj_out.bias": (TINY.context,)}
    sizes |= {f"cond_stage_model.final_ln.{kind}": (c,) for kind in ("weight", "bias")}
    for number in range(TINY.blocks):
        block = f"cond_stage_model.mapper.resblocks.{number}."
        for name, (out, into) in {
            "attn.c_qkv": (3 * c, c),
            "attn.c_proj": (c, c),
            "mlp.c_fc": (4 * c, c),
            "mlp.c_proj": (c, 4 * c),
        }.items():
            sizes |= {f"{block}{name}.weight": (out, into), f"{block}{name}.bias": (out,)}
        sizes |= {f"{block}{ln}.{kind}": (c,) for ln in ("ln_1", "ln_2") for kind in ("weight", "bias")}
    return {name: torch.randn(size, generator=rng) * 0.2 for name, size in sizes.items()}


def as_diffusers(state):
    """The same weights in the other layout."""
    names = {
        "attn.c_proj": "attn1.to_out.0",
        "ln_1": "norm1",
        "ln_2": "norm3",
        "mlp.c_fc": "ff.net.0.proj",
        "mlp.c_proj": "ff.net.2",
    }
    out = {"uncond_vector": state["learnable_vector"]}
    for name, weight in state.items():
        if name.startswith("proj_out"):
            out[name] = weight
        elif "final_ln" in name:
            out[f"final_layer_norm.{name.rpartition('.')[2]}"] = weight
        elif "resblocks" in name:
            number, rest = name.removeprefix("cond_stage_model.mapper.resblocks.").split(".", 1)
            layer, kind = rest.rsplit(".", 1)
            if layer == "attn.c_qkv":
                for which, rows in zip("qkv", weight.chunk(3)):
                    out[f"mapper.blocks.{number}.attn1.to_{which}.{kind}"] = rows
            else:
                out[f"mapper.blocks.{number}.{names[layer]}.{kind}"] = weight
    return out


def full_attention(state, pooled):
    """The mapper as it is published, with its attention over a sequence of one token."""
    x = pooled[:, None]
    c = x.shape[-1]

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, (c,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    for number in range(TINY.blocks):
        block = f"cond_stage_model.mapper.resblocks.{number}."
        q, k, v = linear(norm(x, f"{block}ln_1"), f"{block}attn.c_qkv").chunk(3, dim=-1)
        weight = (q @ k.transpose(-1, -2) / math.sqrt(c)).softmax(dim=-1)
        x = x + linear(weight @ v, f"{block}attn.c_proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}ln_2"), f"{block}mlp.c_fc")), f"{block}mlp.c_proj")
    return linear(norm(x, "cond_stage_model.final_ln"), "proj_out")


def test_both_layouts_give_identical_tensors_and_the_published_numbers():
    state = published_mapper()
    one = checkpoint.split_checkpoint(state).mapper
    other_state = as_diffusers(state)
    other = checkpoint.split_checkpoint(other_state).mapper
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert checkpoint.mapper_config(one) == TINY
    mapper = ExemplarMapper(TINY)
    mapper.load_state_dict(one, strict=True)
    pooled = rand(3, TINY.width)
    assert_close(mapper(pooled), full_attention(state, pooled), rtol=1e-5, atol=1e-5)


def test_the_published_size():
    assert sum(p.numel() for p in ExemplarMapper(device="meta").blocks[0].parameters()) == 12_596_224 - 2 * 1024 * 1025


# Exemplars


def test_squash_is_what_pillow_does():
    pixels = (torch.rand(60, 120, 3, generator=torch.Generator().manual_seed(0)) * 255).byte()
    theirs = torch.from_numpy(np.array(Image.fromarray(pixels.numpy()).resize((32, 32), Image.BICUBIC))).float() / 255
    ours = exemplar.fit_square(pixels.permute(2, 0, 1).float() / 255, 32, "squash")
    assert_close(ours, theirs.permute(2, 0, 1), rtol=0, atol=2.1 / 255)  # Pillow rounds between its two passes


def test_fits_differ_where_the_picture_is_not_square():
    picture = torch.zeros(3, 32, 64)
    picture[:, :, :16] = 1  # a bar at the left edge, which the middle does not show
    squash, centre, pad = (exemplar.fit_square(picture, 32, fit) for fit in exemplar.FITS)
    assert squash[:, :, :6].min() > 0.9 and squash[:, :, 12:].max() < 0.1
    assert centre.max() < 0.1
    assert pad[:, :7].max() == 0 and pad[:, 10:20, :6].min() > 0.9 and pad[:, 25:].max() == 0


@pytest.mark.parametrize("fill, value", [("black", 0.0), ("grey", 0.5), ("white", 1.0)])
def test_the_rest_is_filled_and_cropped_away(fill, value):
    picture, mask = torch.full((3, 20, 30), 0.3), torch.zeros(20, 30)
    mask[5:10, 6:16] = 1
    mask[7, 8] = 0
    found = exemplar.cut_out(picture, mask, fill, crop=True)
    assert found.shape == (3, 5, 10) and found[0, 0, 0] == pytest.approx(0.3) and found[0, 2, 2] == value
    assert torch.equal(exemplar.cut_out(picture, mask, "keep", crop=False), picture)
    assert exemplar.cut_out(picture, mask, "blur", crop=False)[0, 0, 0] == pytest.approx(0.3, abs=1e-4)
    with pytest.raises(ValueError, match="empty"):
        exemplar.cut_out(picture, torch.zeros(20, 30), fill, crop=True)


def test_strength_is_exact_at_both_ends_and_linear_between():
    null, token = rand(1, 1, 8), rand(2, 1, 8, seed=1)
    assert torch.equal(exemplar.scale_token(null, token, 0.0), null.expand(2, 1, 8))
    assert torch.equal(exemplar.scale_token(null, token, 1.0), token)
    assert_close(exemplar.scale_token(null, token, 0.25), 0.75 * null + 0.25 * token)


@pytest.mark.parametrize("course", ["constant", "fade in", "fade out"])
@pytest.mark.parametrize("start, end", [(0.0, 1.0), (0.2, 0.7), (0.5, 0.5), (0.9, 0.1)])
def test_the_steps_of_a_course_cover_all_of_the_sampling_once(course, start, end):
    steps = exemplar.schedule_strength(0.8, course, start, end)
    assert steps[0][0] == 0.0 and steps[-1][1] == 1.0
    assert all(a[1] == b[0] and a[0] < a[1] for a, b in itertools.pairwise(steps))
    assert max(value for *_, value in steps) == (0.8 if start < end else 0.0)
    assert all(value == 0 for first, last, value in steps if last <= start or first >= end)


# Files


def test_a_file_of_something_else_is_named(tmp_path):
    def says(state, text, name="x.safetensors", metadata=None):
        save_file(state, tmp_path / name, metadata=metadata)
        with pytest.raises(ValueError, match=text):
            checkpoint.read(tmp_path / name)

    says({"lora.up": torch.zeros(2)}, "not a part of Paint by Example")
    says({"input_blocks.0.0.weight": torch.zeros(8, 4, 3, 3)}, "has 4 input channels")
    text = {"cond_stage_model.transformer.text_model.final_layer_norm.weight": torch.zeros(2)}
    says(
        {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, 9, 3, 3), **text}, "for text prompts, not for exemplars"
    )
    state = published_mapper()
    del state["cond_stage_model.mapper.resblocks.1.mlp.c_fc.bias"]
    says(state, r"1 weights of the exemplar encoder are missing .*resblocks.1.mlp.c_fc.bias")
    wrong = published_mapper() | {"proj_out.bias": torch.zeros(3)}
    says(wrong, r"proj_out.bias is \[3\], needed is \[24\]")


class Hostile:
    def __reduce__(self):
        return print, ("executed",)


def test_damaged_and_hostile_files_are_refused_and_nothing_runs(tmp_path, capsys):
    whole = tmp_path / "whole.ckpt"
    torch.save({"state_dict": published_mapper()}, whole)
    (tmp_path / "half.ckpt").write_bytes(whole.read_bytes()[:5000])
    (tmp_path / "empty.ckpt").write_bytes(b"")
    save_file(published_mapper(), tmp_path / "whole.safetensors")
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:5000])
    for name in ("half.ckpt", "empty.ckpt", "half.safetensors"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read as weights"):
            checkpoint.read(tmp_path / name)
    torch.save({"state_dict": Hostile()}, tmp_path / "hostile.ckpt")
    with pytest.raises(ValueError, match=r"hostile\.ckpt cannot be read as weights"):
        checkpoint.read(tmp_path / "hostile.ckpt")
    assert "executed" not in capsys.readouterr().out


def test_a_training_checkpoint_is_mapped_and_its_optimizer_left_alone(tmp_path):
    """The published file also holds numpy numbers and the library's own object; both are let in as data."""
    ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": "pytorch_lightning.callbacks.model_checkpoint"})
    import sys
    import types

    parent, module = types.ModuleType("pytorch_lightning.callbacks"), types.ModuleType(ModelCheckpoint.__module__)
    module.ModelCheckpoint = ModelCheckpoint
    names = {"pytorch_lightning": types.ModuleType("pytorch_lightning"), parent.__name__: parent, module.__name__: module}
    sys.modules.update(names)
    try:
        state = {"state_dict": published_mapper(), "callbacks": {ModelCheckpoint: {"best": np.float64(0.5)}}}
        torch.save(state | {"optimizer_states": [{0: torch.zeros(100_000)}]}, tmp_path / "model.ckpt")
    finally:
        for name in names:
            del sys.modules[name]
    found = checkpoint.read(tmp_path / "model.ckpt")
    assert torch.equal(found.mapper["null"], published_mapper()["learnable_vector"])


def test_a_diffusers_folder_is_found_from_any_of_its_files(tmp_path):
    for part in ("unet", "image_encoder", "vae"):
        (tmp_path / part).mkdir()
    unet = {"conv_in.weight": torch.zeros(8, 9, 3, 3), "time_embedding.linear_1.weight": torch.zeros(4, 4)}
    torch.save(unet, tmp_path / "unet" / "diffusion_pytorch_model.bin")
    torch.save(as_diffusers(published_mapper()), tmp_path / "image_encoder" / "pytorch_model.bin")
    torch.save({"decoder.conv_in.weight": torch.zeros(1)}, tmp_path / "vae" / "diffusion_pytorch_model.bin")
    for path in tmp_path.rglob("*.bin"):
        found = checkpoint.read(path)
        assert found.unet.keys() == unet.keys() and found.mapper and found.vae


def test_our_own_layout_comes_back(tmp_path):
    mapper, unet = ExemplarMapper(TINY).state_dict(), {"input_blocks.0.0.weight": rand(4, 9, 3, 3)}
    contents = checkpoint.Contents(unet=unet, mapper=mapper, tower={"embeddings.x": rand(2)}, metadata={"base": "playground"})
    checkpoint.save(tmp_path / "own.safetensors", contents, torch.float32)
    found = checkpoint.read(tmp_path / "own.safetensors")
    assert found.metadata["base"] == "playground" and torch.equal(
        found.unet["input_blocks.0.0.weight"], unet["input_blocks.0.0.weight"]
    )
    assert found.mapper.keys() == mapper.keys() and found.tower.keys() == {"embeddings.x"} and not found.vae


# Attention


def attend(q, k, v, heads=2):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def test_the_bias_of_rank_one_is_the_bias_written_out():
    q, k, v = (rand(2, 12, 16, seed=s) for s in range(3))
    hole = (rand(2, 12, seed=4) > 0).float()
    beta = 1.7
    heads = [x.unflatten(-1, (2, 8)).transpose(1, 2).double() for x in (q, k, v)]
    logits = heads[0] @ heads[1].transpose(-1, -2) / math.sqrt(8) + beta * (hole[:, :, None] * (1 - hole)[:, None])[:, None]
    expected = (logits.softmax(-1) @ heads[2]).transpose(1, 2).flatten(2).float()
    assert_close(attention.context_biased_attention(q, k, v, 2, hole, beta, attend), expected, rtol=1e-4, atol=1e-5)
    assert_close(attention.context_biased_attention(q, k, v, 2, hole, 0.0, attend), attend(q, k, v), rtol=1e-4, atol=1e-5)
    more = torch.cat([k, rand(2, 5, 16, seed=5)], dim=1), torch.cat([v, rand(2, 5, 16, seed=6)], dim=1)
    assert attention.context_biased_attention(q, *more, 2, hole, beta, attend).shape == q.shape, (
        "another pack's tokens may follow"
    )


def test_regions_speak_where_they_are_and_the_later_covers_the_earlier():
    base, one, two = rand(1, 6, 4), rand(1, 1, 4, seed=1), rand(1, 1, 4, seed=2)
    masks = torch.tensor([[1.0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0.5, 0]])[:, None]
    found = base + attention.regional_exemplars(base, [one, two], masks)
    expected = torch.stack([one[0, 0], one[0, 0], two[0, 0], two[0, 0], (base[0, 4] + two[0, 0]) / 2, base[0, 5]])[None]
    assert_close(found, expected)


def test_the_holes_statistics_become_the_rings():
    x, hole = rand(2, 64, 8) * 3 + 1, torch.zeros(2, 8, 8)
    hole[:, 2:5, 2:6] = 1
    ring = attention.ring_around(hole)
    assert not (ring * hole).any() and ring.any()
    flat, around = hole.flatten(1), ring.flatten(1)
    out = attention.adain(x, flat, around)
    for row in range(2):
        inside, outside = out[row][flat[row] > 0], x[row][around[row] > 0]
        assert_close(inside.mean(0), outside.mean(0), rtol=1e-3, atol=1e-3)
        assert_close(inside.std(0, correction=0), outside.std(0, correction=0), rtol=1e-2, atol=1e-2)
    assert torch.equal(attention.adain(x, torch.ones(2, 64), torch.zeros(2, 64)), x), "a hole of everything has no ring"


# Training


def test_the_condition_is_dropped_in_a_fifth_of_the_cases_and_the_null_token_learns():
    mapper = ExemplarMapper(TINY)
    nn.init.normal_(mapper.null)
    context = training.make_context(mapper, rand(4000, TINY.width), 0.2, torch.Generator().manual_seed(1))
    dropped = (context == mapper.null).all(dim=-1).float().mean()
    assert abs(float(dropped) - 0.2) < 0.03  # 4 standard deviations of 4,000 draws
    context.sum().backward()
    assert mapper.null.grad is not None and mapper.null.grad.abs().sum() > 0


def test_an_unchanged_exemplar_is_unchanged_and_others_differ_each_in_its_way():
    squares = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    still = Augmentation(flip=0, rotate=0, blur=0, warp=0)
    assert_close(still(squares, torch.Generator().manual_seed(0)), squares, rtol=0, atol=1e-4)
    mirrored = Augmentation(flip=1, rotate=0, blur=0, warp=0)
    assert_close(mirrored(squares, torch.Generator().manual_seed(0)), squares.flip(-1), rtol=0, atol=1e-4)
    found = Augmentation()(squares, torch.Generator().manual_seed(0))
    assert found.shape == squares.shape and found.min() >= 0 and found.max() <= 1 and not torch.equal(found, squares)


def test_the_input_has_the_published_order_and_polarity():
    noisy, known, hole = torch.full((1, 4, 2, 2), 1.0), torch.full((1, 4, 2, 2), 2.0), torch.tensor([[[[1.0, 0], [0, 0]]]])
    found = training.unet_input(noisy, known, hole)
    assert found[0, :, 0, 0].tolist() == [1] * 4 + [2] * 4 + [0] and found[0, 8].tolist() == [[0, 1], [1, 1]]
