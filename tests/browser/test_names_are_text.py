"""Names of classes, phrases and files are text on the page, wherever they come from: nothing in them runs. In both renderers."""

from __future__ import annotations

import json
import random

import pytest
import torch
from pack.py.semantic.painting import Painting, serialize_painting
from pack.tests.browser.editors import Editor, Painter

EVIL = "<img src=x onerror=window.__pwned=1>"
RAN = "() => [window.__pwned ?? null, document.querySelectorAll('img[src=x], script[src=x]').length]"


@pytest.fixture
def tab(page):
    page.page.evaluate("() => { delete window.__pwned }")
    return page.page


def is_harmless(tab) -> None:
    tab.wait_for_timeout(700)  # an image that does not load reports it in the next moment
    assert tab.evaluate(RAN) == [None, 0]


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def painted(name: str, **inputs) -> dict:
    choices = {"palette": "own classes", "background": "", "threshold": 0.5}
    return node("ExemplarySemanticMapFromMasks", mask=["2", 0], class_name=name, **choices, **inputs)


def test_a_class_name_in_a_notice_is_text(page, tab):
    """A shared workflow is enough: a class of a map is named like an element, and the node's notice lists the classes of the map."""
    strength = random.uniform(0.5, 1.0)  # a node that ran before says nothing again
    attention = {"strength": strength, "start_percent": 0.0, "end_percent": 1.0, "leak": 0.0, "base_weight": 0.2}
    attention |= {"variant": "one softmax", "isolate": 0.9, "layers": "all", "early": 4.0}
    prompt = {
        "1": node("ExemplaryPlaygroundModels"),
        "2": node("SolidMask", value=1.0, width=64, height=64),
        "3": painted("box"),
        "4": painted(EVIL, semantic_map=["3", 0]),
        "5": node("CLIPTextEncode", text="a blue box", clip=["1", 1]),
        "6": node("ExemplaryCA2SISClassConditioning", classes="box", weight=1.0, conditioning=["5", 0]),
        "7": node("ExemplaryCA2SISAttention", model=["1", 0], semantic_map=["4", 0], class_conditionings=["6", 0], **attention),
        "8": node("PreviewAny", source=["7", 0]),
    }
    tab.evaluate("async prompt => { await window.app.loadApiJson(prompt, 'shared') }", prompt)
    tab.evaluate("() => { window.app.canvas.ds.scale = 0.5; window.app.canvas.setDirty(true, true) }")
    said = tab.evaluate(
        """async () => {
            const { api } = window.app;
            return await new Promise(async done => {
                api.addEventListener("progress_text", ({ detail }) => done(detail.text), { once: true });
                api.addEventListener("execution_error", ({ detail }) => done("error: " + detail.exception_message), { once: true });
                setTimeout(() => done("nothing was said"), 90_000);
                await window.app.queuePrompt(0, 1);
            });
        }"""
    )
    assert "the map shows only" in said, said
    is_harmless(tab)
    shown = tab.get_by_text("the map shows only").first
    if shown.count():  # the Vue renderer of some frontends shows no notices
        assert EVIL in shown.inner_text()


def test_a_class_name_in_the_painter_is_text(page, tab):
    painting = Painting(torch.zeros(8, 8, dtype=torch.uint8), ((EVIL, (255, 0, 0)), ("sky", (0, 0, 255))))
    saved = {"id": 1, "type": "ExemplarySemanticMapPainter", "pos": [200, 150], "size": [460, 660], "mode": 0, "properties": {}}
    page.load({"version": 0.4, "links": [], "nodes": [{**saved, "widgets_values": [64, 64, serialize_painting(painting)]}]})
    painter = Painter(page)
    painter.root.wait_for(state="visible")
    painter.root.locator(".exp-list").get_by_text(EVIL).wait_for()
    painter.root.locator(".exp-search").fill(EVIL + "2")
    painter.press("Enter")
    painter.give('{"palette": ' + json.dumps(EVIL) + "}")
    assert EVIL in painter.status.inner_text()
    is_harmless(tab)


def test_a_phrase_in_the_layout_editor_is_text(page, tab):
    saved = {"id": 1, "type": "ExemplaryInstanceLayout", "pos": [200, 150], "size": [420, 720], "mode": 0, "properties": {}}
    layout = json.dumps({"caption": EVIL, "annotations": [{"box": [0, 0, 256, 256], "caption": EVIL}]})
    page.load({"version": 0.4, "links": [], "nodes": [{**saved, "widgets_values": [512, 512, layout]}]})
    editor = Editor(page)
    editor.root.wait_for(state="visible")
    assert editor.root.locator(".exl-label").first.inner_text() == f"1 {EVIL}"
    editor.give(f'[{{"box": {json.dumps(EVIL)}, "phrase": "a"}}]')
    editor.give("{" + EVIL)
    is_harmless(tab)


def test_the_scripts_never_set_html():
    from pack.tests import live

    found = [
        f"{path.name}: {word}"
        for path in sorted((live.ROOT / "js").glob("*.js"))
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "createContextualFragment",
        )
        if word in path.read_text(encoding="utf-8")
    ]
    assert found == []
