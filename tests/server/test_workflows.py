"""Workflows posted over HTTP as a user's client posts them, with the websocket watched for progress and errors."""

from __future__ import annotations

import io
import json

import pytest
from pack.devtools.client import PromptRefused
from pack.devtools.say import Trouble
from pack.devtools.workflow import to_prompt
from pack.tests import live
from PIL import Image

CORE = live.WORKFLOWS[0]


def test_the_converter_names_values_follows_links_and_leaves_out_what_does_not_run(object_info):
    prompt = to_prompt(live.read(CORE), object_info)
    assert set(prompt) == {"1", "5", "6", "8", "10", "11"}  # no reroute, note or primitive, nothing muted or bypassed
    assert prompt["5"]["inputs"] == {
        "upscale_method": "nearest-exact",
        "width": 96,
        "height": 80,
        "crop": "disabled",
        "image": ["1", 0],
    }
    assert prompt["8"]["inputs"] == {"noise_seed": 20261}
    assert prompt["10"]["inputs"] == {"source": ["11", 0]}


def test_a_workflow_runs_and_gives_images_texts_and_events(client, comfyui, object_info):
    run = client.run(to_prompt(live.read(CORE), object_info), alive=comfyui.alive)
    assert run.error is None
    assert run.events[0]["type"] == "execution_start"
    ((_, image),) = run.images()
    assert Image.open(io.BytesIO(client.view(image))).size == (96, 80)
    assert [text for _, text in run.texts()] == ["three words, one comma"]


def test_the_same_prompt_twice_gives_the_same_outputs(client, object_info):
    prompt = to_prompt(live.read(CORE), object_info)
    first, second = (client.view(client.run(prompt).images()[0][1]) for _ in range(2))
    assert Image.open(io.BytesIO(first)).tobytes() == Image.open(io.BytesIO(second)).tobytes()


def test_a_refused_prompt_names_node_and_input(client, object_info):
    prompt = to_prompt(live.read(CORE), object_info)
    prompt["1"]["inputs"]["width"] = 0
    with pytest.raises(PromptRefused, match=r"EmptyImage \(node 1\).*width"):
        client.run(prompt)


def test_an_error_while_running_is_reported_and_the_next_prompt_runs(client, comfyui, object_info):
    prompt = to_prompt(live.read(CORE), object_info)
    broken = json.loads(json.dumps(prompt))
    broken["6"]["inputs"]["filename_prefix"] = "../../outside"
    run = client.run(broken, alive=comfyui.alive)
    assert run.error["node_type"] == "SaveImage" and "outside" in run.error["exception_message"]
    assert comfyui.alive() and client.run(prompt).error is None


def test_an_unknown_node_is_named(object_info):
    workflow = {"nodes": [{"id": 1, "type": "SomebodysNode", "mode": 0}], "links": []}
    with pytest.raises(Trouble, match="SomebodysNode"):
        to_prompt(workflow, object_info)


@pytest.mark.parametrize("path", live.COMPLETE, ids=lambda path: path.stem)
def test_every_example_runs(path, client, comfyui, object_info):
    run = client.run(to_prompt(live.read(path), object_info), alive=comfyui.alive, seconds=300)
    assert run.error is None, run.error and run.error.get("exception_message")
    assert run.images(), "the example saved no image"
    for _, image in run.images():
        colours = Image.open(io.BytesIO(client.view(image))).convert("RGB").getextrema()
        assert any(low < high for low, high in colours), f"{image['filename']} is one flat colour"


@pytest.mark.parametrize("path", [p for p in live.EXAMPLES if p not in live.COMPLETE], ids=lambda path: path.stem)
def test_an_example_without_its_files_is_refused_for_them_alone(path, client, object_info):
    with pytest.raises(PromptRefused) as refused:
        client.run(to_prompt(live.read(path), object_info))
    kinds = {error["type"] for node in refused.value.details["node_errors"].values() for error in node["errors"]}
    # The second is what LoadImage says of a picture that is not there.
    assert kinds and kinds <= {"value_not_in_list", "custom_validation_failed"}, refused.value


@pytest.mark.parametrize("path", live.EXAMPLES, ids=lambda path: path.stem)
def test_the_api_form_of_every_example_stays_as_it_was_released(path, object_info):
    kept = live.ROOT / "tests" / "workflows" / f"{path.stem}.api.json"
    assert kept.exists(), (
        f"Keep the API form: python3 dev.py convert {path.relative_to(live.ROOT)} > {kept.relative_to(live.ROOT)}"
    )
    assert _without_titles(to_prompt(live.read(path), object_info)) == _without_titles(live.read(kept))


def _without_titles(prompt):
    """A prompt without the nodes' titles, which are the host's words and change with it."""
    return {key: {name: value for name, value in node.items() if name != "_meta"} for key, node in prompt.items()}


@pytest.mark.parametrize("path", live.EXAMPLES, ids=lambda path: path.stem)
def test_every_example_has_a_thumbnail_for_the_template_browser(path):
    assert path.with_suffix(".jpg").is_file()


def test_the_template_browser_offers_every_example(client):
    offered = {name for found in client.get_json("/workflow_templates").values() for name in found}
    assert {path.stem for path in live.EXAMPLES} <= offered
