"""Instance success of drawn scenes: the node, the command over folders, and what they refuse."""

from __future__ import annotations

import json

import pytest
import torch
from pack.lab.evaluate import instances as command
from pack.lab.evaluate import playground as evaluation
from pack.nodes.evaluation import ExemplaryInstanceSuccess
from pack.py.ifadapter.instances import Instance, Instances
from PIL import Image


@pytest.fixture(scope="module")
def drawn():
    """Eight held-out layouts as drawn, which is what a perfect result looks like."""
    layouts = evaluation.held_out_layouts(8)
    return layouts, evaluation.as_images(layouts).movedim(1, -1)


def asked(scene) -> Instances:
    return Instances(tuple(Instance(each.box, each.phrase) for each in scene.instances))


def measured(images, instances, **more):
    values = {"judge": "playground", "overlap": 0.5, "detector": "", "vision_language_model": "", **more}
    return ExemplaryInstanceSuccess.execute(images, instances, **values).args


def test_drawn_scenes_succeed_and_others_do_not(drawn):
    layouts, images = drawn
    right = [measured(images[n : n + 1], asked(scene))[0] for n, scene in enumerate(layouts)]
    wrong = [measured(images[n : n + 1], asked(layouts[n - 1]))[0] for n in range(len(layouts))]
    assert sum(right) / 8 > 0.8 and sum(wrong) / 8 < 0.2


def test_the_report_counts_every_picture_of_the_batch(drawn):
    layouts, images = drawn
    success, report = measured(torch.cat([images[:1], images[1:2]]), asked(layouts[0]))
    assert 0.0 < success <= 0.5 and "| images |" in report
    assert all(each.phrase in report and " of 2, IoU" in report for each in layouts[0].instances)


def test_colour_and_texture_of_the_phrase_count(drawn):
    layouts, images = drawn
    thing = max(layouts[0].instances, key=lambda each: each.box[2] - each.box[0])
    named = f"a {thing.attributes['colour']} {thing.name}"
    others = [f"a {colour} {thing.name}" for colour in ("red", "blue") if colour != thing.attributes["colour"]]
    found = [measured(images[:1], Instances((Instance(thing.box, phrase),)))[0] for phrase in (named, *others)]
    assert found == [1.0] + [0.0] * len(others)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"images": torch.full((1, 32, 32, 3), float("nan"))}, "NaN"),
        ({"images": torch.zeros(1, 32, 32, 2)}, "1, 3 or 4 channels"),
        ({"instances": Instances()}, "no instances"),
        ({"judge": "own models"}, "detector's folder '' does not exist"),
    ],
)
def test_bad_input_says_what_to_do(drawn, change, says):
    values = {"images": drawn[1][:1], "instances": asked(drawn[0][0]), **change}
    with pytest.raises(ValueError, match=says):
        measured(values.pop("images"), values.pop("instances"), **values)


def test_folders_become_rows_of_one_table(drawn, tmp_path, caplog):
    layouts, images = drawn
    described = {"images": [], "annotations": []}
    for name, shift in (("right", 0), ("wrong", 1)):
        (tmp_path / name).mkdir()
        for n in range(4):
            pixels = (images[(n + shift) % 8] * 255).round().byte().numpy()
            # Results may have another size and format than the layouts say.
            Image.fromarray(pixels).resize((192, 192)).save(tmp_path / name / f"{n}.webp", lossless=True)
    for n, scene in enumerate(layouts[:4]):
        described["images"].append({"id": n, "file_name": f"{n}.png", "width": 1, "height": 1, "caption": scene.caption})
        for each in scene.instances:
            x0, y0, x1, y1 = each.box
            described["annotations"].append({"image_id": n, "bbox": [x0, y0, x1 - x0, y1 - y0], "caption": each.phrase})
    (tmp_path / "layouts.json").write_text(json.dumps(described))
    arguments = [f"{name}={tmp_path / name}" for name in ("right", "wrong")] + ["--layouts", str(tmp_path / "layouts.json")]
    with caplog.at_level("INFO", logger="exemplary"):
        assert command.main([*arguments, "--clip", "playground"]) == 0
    rows = [line.split("|")[1:-1] for line in caplog.messages[-1].splitlines()]
    heads = [cell.strip() for cell in rows[0]]
    right, wrong = (dict(zip(heads, (cell.strip() for cell in row))) for row in rows[2:])
    assert right["images"] == "4" and float(right["success"]) > 80 > 20 > float(wrong["success"])
    assert float(right["IoU"]) > 70 and float(right["AP50"]) > float(wrong["AP50"])
    assert float(right["CLIP"]) > float(wrong["CLIP"])
    (tmp_path / "empty").mkdir()
    assert command.main([f"a={tmp_path / 'empty'}", "--layouts", str(tmp_path / "layouts.json")]) == 1


def test_pictures_of_the_same_scenes_are_nearer_than_others():
    """The Frechet distance on the image encoder's features tells objects from streets."""
    features, _ = command.playground_embedders()
    sets = [evaluation.as_images(evaluation.held_out(*each)) for each in (("objects", 24), ("objects", 24, 500), ("street", 24))]
    a, b, c = (features(list(images)) for images in sets)
    assert evaluation.frechet_distance(a, b) < evaluation.frechet_distance(a, c)
