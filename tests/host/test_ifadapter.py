"""The weight-free layout on real tiny models: where it acts, what it reads, what it refuses; and its nodes."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest
import tiny
import torch
from pack.nodes import ifadapter as nodes
from pack.py.host import slots
from pack.py.host.ifadapter import apply as ifadapter
from pack.py.ifadapter.instances import Instance, Instances
from pack.py.ifadapter.regional import Settings

ROOT = Path(__file__).resolve().parents[2]


def layout(model, instances, **more):
    return ifadapter.apply(model, tiny.TinyCLIP(tiny.text_width(model)), instances, **more)


def one(box=(0.0, 0.0, 0.5, 0.5), phrase="a red car", **more):
    return Instances((Instance(box, phrase, **more),))


def attention_results(model, size=(16, 16), **more):
    """What every attn2 slot returns in the first model call: {layer: [rows, h, w, c]}."""
    found = {}
    table = model.model_options["transformer_options"]["patches_replace"]["attn2"]
    spied = model.clone()
    for key, slot in table.items():

        def spy(q, k, v, options, slot=slot, key=key):
            out = slot(q, k, v, options)
            if key not in found:
                found[key] = out.unflatten(1, tuple(options["activations_shape"][-2:])).clone(), list(options["cond_or_uncond"])
            return out

        spied.set_model_attn2_replace(spy, *key)
    tiny.sample(spied, steps=1, size=size, **more)
    return found


def first_layer(model, **more):
    """The first layer is the only one whose queries are the same with and without us."""
    out, kinds = next(iter(attention_results(model, **more).values()))
    return out[kinds.index(0) * (len(out) // len(kinds))], out[kinds.index(1) * (len(out) // len(kinds))]


def untouched(model):
    """The same slots with nothing inside any range."""
    return layout(model, one(), start_percent=0.998, end_percent=0.999)


@pytest.mark.parametrize("size", [(16, 16), (13, 19)])
def test_only_the_box_changes_and_only_in_conditional_rows(model, size):
    positive, negative = first_layer(layout(model, one()), size=size)
    plain_positive, plain_negative = first_layer(untouched(model), size=size)
    assert torch.equal(negative, plain_negative)
    h, w = positive.shape[:2]
    changed = (positive != plain_positive).any(dim=-1)
    expected = torch.zeros(h, w, dtype=torch.bool)
    expected[: -(-h // 2), : -(-w // 2)] = True
    assert torch.equal(changed, expected)


def test_inside_the_box_is_the_picture_of_the_phrase(model):
    """At strength 1 the first layer reads inside the box exactly what a prompt of that phrase alone gives."""
    found, _ = first_layer(layout(model, one()))
    width = tiny.text_width(model)
    clip = tiny.TinyCLIP(width)
    alone = [[clip.encode_from_tokens(clip.tokenize("a red car"))[:, :5], tiny.conditioning(model, "a street")[0][1]]]
    prompt, _ = first_layer(untouched(model), positive=alone, negative=alone)  # of one length, so that one call holds both
    h, w = found.shape[0] // 2, found.shape[1] // 2
    torch.testing.assert_close(found[:h, :w], prompt[:h, :w], rtol=1e-4, atol=1e-4)


def test_strength_is_linear_in_the_first_layer(sd15):
    plain, half, full = (first_layer(m)[0] for m in (untouched(sd15), layout(sd15, one(), strength=0.5), layout(sd15, one())))
    torch.testing.assert_close(half, (plain + full) / 2, rtol=1e-4, atol=1e-4)


def test_a_background_phrase_is_read_outside_only(sd15):
    without, with_background = first_layer(layout(sd15, one()))[0], first_layer(layout(sd15, one(), background="a field"))[0]
    changed = (without != with_background).any(dim=-1)
    h, w = changed.shape
    assert not changed[: h // 2, : w // 2].any() and changed[h // 2 :].all() and changed[:, w // 2 :].all()


def test_masks_of_one_picture_each_follow_the_batch(sd15):
    masks = torch.zeros(2, 32, 32)
    masks[0, :16], masks[1, 16:] = 1, 1
    patched = layout(sd15, Instances((Instance((0, 0, 1, 1), "a car", masks),)))
    out, kinds = next(iter(attention_results(patched, batch=2).values()))
    plain, _ = next(iter(attention_results(untouched(sd15), batch=2).values()))
    changed = (out != plain).any(dim=-1)[kinds.index(0) * 2 :][:2]
    h = changed.shape[1] // 2
    assert changed[0, :h].all() and not changed[0, h:].any() and changed[1, h:].all() and not changed[1, :h].any()


def test_a_mask_batch_of_another_length_is_refused_before_sampling(sd15):
    patched = layout(sd15, Instances((Instance((0, 0, 1, 1), "a car", torch.ones(2, 8, 8)),)))
    calls = []
    with pytest.raises(ValueError, match="a batch of 2, but 3 latents"):
        tiny.sample(patched, batch=3, callback=lambda *a: calls.append(a))
    assert not calls


def test_an_area_sees_its_part_of_the_layout(sd15):
    """A box on the right half lies outside of a condition that is limited to the left half."""
    left = tiny.conditioning(sd15, "a street", area=(16, 8, 0, 0))
    right = tiny.conditioning(sd15, "a street", area=(16, 8, 0, 8))
    patched = layout(sd15, one((0.5, 0.0, 1.0, 1.0)))
    assert torch.equal(tiny.sample(patched, left), tiny.sample(sd15, left))
    assert not torch.equal(tiny.sample(patched, right), tiny.sample(sd15, right))


def test_a_tiled_call_of_unknown_place_is_left_alone(sd15, caplog):
    def tiles(apply_model, args):
        x = args["input"]  # turned upside down, so that the tiles are nowhere in the latent
        return torch.cat(
            [apply_model(part.flip(-2), args["timestep"], **args["c"]).flip(-2) for part in x.chunk(2, dim=-1)], dim=-1
        )

    tiled = sd15.clone()
    tiled.set_model_unet_function_wrapper(tiles)
    assert torch.equal(tiny.sample(layout(tiled, one())), tiny.sample(tiled))
    assert sum("tiled sampler" in record.message for record in caplog.records) == 1


def test_the_phrases_are_projected_once_per_run(sd15):
    calls = []
    block = next(iter(ifadapter.hooks.attention_blocks(sd15.model.diffusion_model).values()))
    patched = layout(sd15, one())
    hook = block.attn2.to_k.register_forward_hook(lambda module, inputs, out: calls.append(inputs[0].shape[0]))
    try:
        tiny.sample(patched, steps=4)
    finally:
        hook.remove()
    assert calls.count(1) == 1 and calls.count(2) == 4  # one phrase once; two conditions in each of four steps


def test_separation_changes_self_attention_only_with_more_than_one_owner(sd15):
    boxes = Instances((Instance((0, 0, 0.5, 1), "a"), Instance((0.5, 0, 1, 1), "b")))
    plain, separate = layout(sd15, boxes), layout(sd15, boxes, settings=Settings(separate=4.0))
    assert "attn1" not in plain.model_options["transformer_options"]["patches_replace"]
    assert not torch.equal(tiny.sample(plain), tiny.sample(separate))
    whole = layout(sd15, one((0, 0, 1, 1)), settings=Settings(separate=4.0))
    torch.testing.assert_close(tiny.sample(whole), tiny.sample(layout(sd15, one((0, 0, 1, 1)))), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights(dtype):
    model = tiny.tiny_model(scale=0.3)
    model.model.diffusion_model.to(dtype)
    model.model.diffusion_model.dtype = dtype
    model.model.manual_cast_dtype = None
    found = tiny.sample(layout(model, one(), background="a field", settings=Settings(separate=1.0)))
    assert found.isfinite().all() and not torch.equal(found, tiny.sample(model))


def test_bad_values_stop_at_the_node(sd15):
    for more, says in (
        ({"strength": float("nan")}, "strength is nan"),
        ({"strength": 3.0}, "strength is 3.0"),
        ({"start_percent": float("nan")}, "start_percent is nan"),
        ({"end_percent": 1.5}, "end_percent is 1.5"),
    ):
        with pytest.raises(ValueError, match=says):
            layout(sd15, one(), **more)
    with pytest.raises(ValueError, match="CLIP input is empty"):
        ifadapter.apply(sd15, None, one())
    with pytest.raises(ValueError, match=r"width 2048, but the MODEL .* takes width 64"):
        ifadapter.apply(sd15, tiny.TinyCLIP(2048), one())


def test_no_instances_are_the_model_itself_and_say_so(sd15, caplog):
    assert layout(sd15, Instances()) is sd15
    assert "no instances" in caplog.text


def test_500_instances_and_phrases_of_any_kind(sd15):
    many = [Instance((n % 25 / 25, n // 25 / 20, n % 25 / 25 + 0.04, n // 25 / 20 + 0.05), f"thing {n % 7}") for n in range(497)]
    odd = [
        Instance((0, 0, 1, 1), p)
        for p in ("word " * 2000, "\U0001f408\u200d\U0001f9ba", "\u05d7\u05ea\u05d5\u05dc \u0642\u0637\u0629")
    ]
    clip = tiny.TinyCLIP(64)
    patched = ifadapter.apply(sd15, clip, Instances((*many, *odd)), settings=Settings(separate=1.0))
    assert len(clip.encoded) == 10, "the same phrase is encoded once"
    assert tiny.sample(patched).isfinite().all()


# The nodes


def chain(**more):
    values = {"phrase": "a car", "x": 0.1, "y": 0.1, "width": 0.4, "height": 0.4, "strength": 1.0, **more}
    return nodes.ExemplaryInstance.execute(**values).args[0]


def test_instances_chain(sd15):
    first = chain()
    both = chain(phrase="a cat", x=0.5, instances=first)
    assert (len(first), len(both)) == (1, 2)
    (patched,) = nodes.ExemplaryApplyIFAdapter.execute(sd15, tiny.TinyCLIP(), both, 1.0, 0.0, 1.0, "", 0.0).args
    assert isinstance(
        patched.model_options["transformer_options"]["patches_replace"]["attn2"]["middle", 0, 0], slots.AttentionSlot
    )


def test_a_connected_mask_gives_the_box():
    mask = torch.zeros(1, 8, 8)
    mask[0, 4:, 4:] = 1
    assert chain(mask=mask).items[0].box == (0.5, 0.5, 1.0, 1.0)


def test_boxes_from_other_nodes_and_json():
    run = nodes.ExemplaryInstancesFromBoxes.execute
    found, text = run(
        "a\nb", "x0 y0 x1 y1, pixels", 100, 100, "", instances=chain(), boxes=[[0, 0, 50, 50], [50, 50, 100, 100]]
    ).args
    assert [i.phrase for i in found] == ["a car", "a", "b"]
    again, _ = run("", "x0 y0 x1 y1, 0-1", 1, 1, text).args
    assert [i.box for i in again] == [i.box for i in found]
    with pytest.raises(ValueError, match="connect boxes or write JSON"):
        run("", "x0 y0 x1 y1, 0-1", 1, 1, " ")


@pytest.mark.parametrize(
    "image",
    [None, torch.rand(2, 60, 90, 3), torch.rand(1, 60, 90, 4), torch.full((1, 60, 90, 1), float("nan")), torch.rand(1, 1, 1, 3)],
)
def test_the_preview_draws_anything(image):
    mask = torch.zeros(1, 5, 5)
    mask[0, 2, 2] = 1
    items = chain(
        phrase="\U0001f408 \u05d7\u05ea\u05d5\u05dc " * 50,
        instances=chain(mask=mask, instances=chain(x=0.0, y=0.0, width=1.0, height=1.0)),
    )
    (found,) = nodes.ExemplaryInstanceMapPreview.execute(items, 128, 64, image).args
    assert found.shape == ((1, 64, 128, 3) if image is None else (*image.shape[:3], 3))
    assert found.min() >= 0 and found.max() <= 1


def test_the_preview_of_nothing_is_paper():
    (found,) = nodes.ExemplaryInstanceMapPreview.execute(Instances(), 32, 16).args
    assert found.shape == (1, 16, 32, 3) and found.std(dim=(1, 2)).max() == 0


@pytest.mark.parametrize("node", nodes.NODES, ids=lambda node: node.__name__)
def test_schemas_are_described_and_match_their_functions(node):
    schema = node.define_schema()
    assert schema.node_id == node.__name__ and schema.description and schema.category.startswith("exemplary/")
    node.GET_SCHEMA()
    assert [i.id for i in schema.inputs] == list(inspect.signature(node.execute).parameters)
    assert all(i.tooltip or i.id in ("model",) for i in schema.inputs)


@pytest.mark.parametrize("node", nodes.NODES, ids=lambda node: node.__name__)
@pytest.mark.parametrize("language", ["en", "zh", "ja"])
def test_every_input_and_output_is_translated(node, language):
    words = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))[node.__name__]
    schema = node.define_schema()
    assert list(words["inputs"]) == [i.id for i in schema.inputs]
    assert list(words["outputs"]) == [str(place) for place in range(len(schema.outputs))]
    if language == "en":
        assert words["display_name"] == schema.display_name and words["description"] == schema.description


@pytest.mark.parametrize("node", nodes.NODES, ids=lambda node: node.__name__)
def test_every_input_is_on_the_help_page(node):
    page = (ROOT / "js" / "docs" / f"{node.__name__}.md").read_text(encoding="utf-8")
    table = " ".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| "))
    assert all(i.id in re.findall(r"\w+", table) for i in node.define_schema().inputs)
