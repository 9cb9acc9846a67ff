"""The layout editor as a user has it, in both renderers: what is drawn and typed is what is queued, saved, undone and loaded again."""

from __future__ import annotations

import json
import random

import pytest
from pack.py.host.preview import distinct_colour as preview_colour
from pack.py.ifadapter.layouts import from_json
from pack.tests.browser.editors import Editor, opened

SOFA = {"box": [0.125, 0.5, 0.5, 0.875], "phrase": "a red plaid sofa", "strength": 1}
CAT = {"box": [0.5, 0.125, 0.875, 0.375], "phrase": "a striped cat", "strength": 0.5}
UPSTREAM = {"caption": "a room", "annotations": [{"box": [64, 128, 256, 256], "caption": "a sofa"}]}


@pytest.fixture
def editor(page):
    """A fresh one of 512 x 512 pixels."""
    return opened(page)


def test_what_is_drawn_and_typed_is_queued_and_saved(editor):
    assert editor.value == [] and "Drag to draw" in editor.root.locator(".exl-hint").inner_text()
    editor.drag((0.13, 0.51), (0.49, 0.87))
    assert "without a phrase" in editor.status.inner_text()
    editor.tab.keyboard.type("a red plaid sofa")
    editor.press("Enter")
    (drawn,) = editor.value
    assert drawn == SOFA
    (read,) = from_json(editor.text).instances
    assert read.phrase == "a red plaid sofa"

    saved = editor.tab.evaluate("() => window.app.graph.serialize()")
    assert saved["nodes"][0]["widgets_values"] == [512, 512, editor.text]
    editor.around.load(saved)
    again = Editor(editor.around)
    assert again.value == [SOFA]
    again.boxes.first.wait_for(state="visible")
    assert again.boxes.count() == 1


def test_a_box_is_moved_resized_and_the_grid_can_be_left(editor):
    editor.give([SOFA])
    editor.drag((0.3, 0.7), (0.42, 0.58))
    assert editor.value[0]["box"] == [0.25, 0.375, 0.625, 0.75]
    editor.drag((0.625, 0.75), (0.9, 0.9))
    assert editor.value[0]["box"] == [0.25, 0.375, 0.90625, 0.90625]
    editor.drag((0.25, 0.375), (0.3, 0.4), "Control")
    x0, y0, *_ = editor.value[0]["box"]
    assert x0 == pytest.approx(0.3, abs=0.01) and y0 == pytest.approx(0.4, abs=0.01) and (x0 * 32) % 1 > 1e-3
    editor.drag((0.5, 0.6), (0.7, 0.8), "Shift")
    assert len(editor.value) == 2, "Shift draws a box on top of another one"


def test_keys_move_resize_remove_duplicate_and_undo_and_the_graph_hears_none_of_it(editor):
    editor.give([SOFA, CAT])
    editor.boxes.first.focus()
    editor.press("ArrowRight", "ArrowUp")
    assert editor.value[0]["box"] == [0.15625, 0.46875, 0.53125, 0.84375]
    editor.press("Shift+ArrowRight", "Shift+ArrowDown")
    assert editor.value[0]["box"] == [0.15625, 0.46875, 0.5625, 0.875]
    editor.press("Alt+ArrowDown")
    assert [entry["phrase"] for entry in editor.value] == [CAT["phrase"], SOFA["phrase"]]
    editor.press("Control+d")
    assert len(editor.value) == 3 and editor.value[2]["phrase"] == SOFA["phrase"]
    editor.press("Delete", "Delete", "Delete")
    assert editor.value == [] and editor.nodes() == 1
    for _ in range(20):  # more often than there is anything to undo
        editor.press("Control+z")
    assert editor.value == [SOFA, CAT] and editor.nodes() == 1
    for _ in range(20):
        editor.press("Control+y")
    assert editor.value == [] and editor.nodes() == 1
    editor.press("Control+Shift+z", "Control+z", "Enter")
    assert editor.nodes() == 1


def test_tab_goes_from_box_to_box_and_enter_writes(editor):
    editor.give([SOFA, CAT])
    editor.boxes.first.focus()
    editor.press("Tab", "Enter", "Control+a")
    editor.tab.keyboard.type("two cats")
    editor.press("Escape")
    assert [entry["phrase"] for entry in editor.value] == [SOFA["phrase"], "two cats"]
    assert editor.tab.evaluate("() => document.activeElement.getAttribute('aria-label')").startswith("Box 2: two cats.")


def test_rows_hold_phrases_strengths_and_the_order(editor):
    editor.give([SOFA, CAT])
    editor.tool("Phrase of box 1").fill("a green sofa")
    editor.tool("Strength of box 2").fill("1.25")
    assert [(entry["phrase"], entry["strength"]) for entry in editor.value] == [("a green sofa", 1), (CAT["phrase"], 1.25)]
    editor.tool("Strength of box 2").fill("9")
    assert editor.value[1]["strength"] == 2
    first, second = (editor.tool(f"Box {n}: drag").bounding_box() for n in (1, 2))
    editor.tab.mouse.move(second["x"] + 8, second["y"] + 8)
    editor.tab.mouse.down()
    editor.tab.mouse.move(first["x"] + 8, first["y"] + 8, steps=4)
    editor.tab.mouse.up()
    assert [entry["phrase"] for entry in editor.value] == [CAT["phrase"], "a green sofa"]
    editor.tool("Remove box 1").click()
    editor.tool("Undo").click()
    assert len(editor.value) == 2
    editor.press("Control+z")
    assert [entry["phrase"] for entry in editor.value] == ["a green sofa", CAT["phrase"]] and editor.nodes() == 1


@pytest.mark.parametrize(
    "text", ["[{", "3", '[{"box": [0, 0, 1], "phrase": "a"}]', '[{"box": [0, 0, 1, 1]}]', '{"annotations": 3}']
)
def test_wrong_json_is_kept_named_and_can_be_mended(editor, text):
    editor.give(text)
    assert editor.text == text
    assert editor.root.locator(".exb-error").is_visible() and editor.status.inner_text()
    editor.root.locator(".exl-text").fill(json.dumps([CAT]))
    assert editor.value == [CAT] and editor.root.locator(".exb-error").count() == 0
    editor.tool("The layout as JSON").click()
    assert editor.boxes.count() == 1


def test_undo_of_the_graph_takes_back_what_was_drawn(editor):
    tracker = "const t = window.app.extensionManager.workflow.activeWorkflow.changeTracker;"
    before = editor.tab.evaluate(
        f"() => {{ {tracker} (t.captureCanvasState ?? t.checkState).call(t); return t.undoQueue.length }}"
    )
    editor.drag((0.13, 0.51), (0.49, 0.87))
    editor.tab.keyboard.type("a sofa")
    editor.press("Enter")
    assert len(editor.value) == 1
    editor.tab.evaluate(f"async before => {{ {tracker} while (t.undoQueue.length > before) await t.undo() }}", before)
    assert editor.value == []
    editor.tab.evaluate(f"async () => {{ {tracker} while (t.redoQueue.length) await t.redo() }}")
    assert [entry["phrase"] for entry in editor.value] == ["a sofa"]


def test_a_copied_node_has_a_layout_of_its_own(editor):
    editor.give([SOFA])
    texts = editor.tab.evaluate(
        """() => {
            const { canvas, graph } = window.app;
            canvas.selectItems([graph._nodes[0]]);
            canvas.copyToClipboard();
            canvas.pasteFromClipboard();
            const layout = node => node.widgets.find(widget => widget.name === "layout");
            const [first, second] = graph._nodes;
            layout(first).value = "[]";
            return [layout(first).value, layout(second).value];
        }"""
    )
    assert json.loads(texts[0]) == [] and json.loads(texts[1]) == [SOFA]


def test_the_picture_has_the_aspect_of_the_inputs_and_grows_with_the_node(page):
    def width_and_height(editor):
        box = editor.root.locator(".exl-picture").bounding_box()
        return box["width"], box["height"]

    small, large = (width_and_height(opened(page, size, (1024, 512, "[]"))) for size in ((420, 620), (900, 640)))
    assert small[0] / small[1] == pytest.approx(2, abs=0.04) and large[0] / large[1] == pytest.approx(2, abs=0.04)
    assert large[0] > 1.5 * small[0]
    page.page.evaluate(
        "() => { const w = window.app.graph._nodes[0].widgets.find(w => w.name === 'width'); w.value = 256; w.callback(256) }"
    )
    page.page.wait_for_timeout(300)
    width, height = width_and_height(Editor(page))
    assert width / height == pytest.approx(0.5, abs=0.02)


def test_layouts_go_in_and_out_as_files(editor, tmp_path):
    file = tmp_path / "layout.json"
    file.write_text(json.dumps(UPSTREAM), encoding="utf-8")
    editor.root.locator("input[type=file]").nth(1).set_input_files(str(file))
    editor.boxes.first.wait_for(state="visible")
    assert editor.value == [{"box": [0.125, 0.25, 0.625, 0.75], "phrase": "a sofa", "strength": 1}]
    assert "a room" in editor.status.inner_text()
    for label, expected in (("Export as an IFAdapter", UPSTREAM), ("Export as JSON", editor.value)):
        with editor.tab.expect_download() as download:
            editor.tool(label).click()
        assert json.loads(download.value.path().read_text(encoding="utf-8")) == expected
    file.write_text("{", encoding="utf-8")
    editor.root.locator("input[type=file]").nth(1).set_input_files(str(file))
    editor.status.get_by_text("Nothing was imported").wait_for()
    assert len(editor.value) == 1


def test_backgrounds_are_shown_and_never_saved(editor, tmp_path, comfyui):
    from PIL import Image

    Image.new("RGB", (32, 32), (200, 40, 40)).save(tmp_path / "mine.png")
    Image.new("RGB", (32, 32), (40, 200, 40)).save(comfyui.folder / "input" / "given.png")
    image = editor.root.locator(".exl-image")
    assert not image.is_visible()
    editor.tab.evaluate(
        """() => {
            const { graph } = window.app;
            const source = window.LiteGraph.createNode("LoadImage");
            graph.add(source);
            source.widgets[0].value = "given.png";
            const slot = graph._nodes[0].inputs.findIndex(input => input.name === "image");
            source.connect(0, graph._nodes[0], slot);
        }"""
    )
    image.wait_for(state="visible")
    assert "given.png" in image.get_attribute("src")
    before = editor.text
    editor.root.locator("input[type=file]").first.set_input_files(str(tmp_path / "mine.png"))
    editor.tool("Take the background").wait_for(state="visible")
    assert image.get_attribute("src").startswith("blob:") and editor.text == before
    assert "blob:" not in json.dumps(editor.tab.evaluate("() => window.app.graph.serialize()"))
    editor.tool("Take the background").click()
    assert "given.png" in image.get_attribute("src")


def state(page, call: str, argument=None):
    """Something of the module layout_state.js."""
    return page.page.evaluate(
        f"async argument => {{ const s = await import('/extensions/exemplary/layout_state.js'); {call} }}", argument
    )


def test_the_editor_and_the_node_read_the_same_json(page):
    texts = [
        "",
        "[]",
        "[{",
        "3",
        "null",
        '"a"',
        "{}",
        '{"caption": "a"}',
        '{"annotations": []}',
        '{"annotations": [3]}',
        "[3]",
        "[[]]",
    ]
    texts += [json.dumps(UPSTREAM), json.dumps({**UPSTREAM, "annotations": [{"box": [1, 2, 3, 4], "caption": ["a", "b"]}]})]
    for box in (
        [0, 0, 1, 1],
        [0.5, 0.5, 0.5, 1],
        [-1, -1, 0.5, 2],
        [2, 2, 3, 3],
        [0, 0, 1],
        "box",
        None,
        [0, "0", 1, 1],
        {"x": 0},
    ):
        texts.append(json.dumps([{"box": box, "phrase": "a"}]))
    for strength in (0, 2, 2.1, -1, "1", True):
        texts.append(json.dumps([{"box": [0, 0, 1, 1], "phrase": "a", "strength": strength}]))
    for text in texts:
        try:
            expected = [(*i.box, i.phrase, i.strength) for i in from_json(text or "[]", 512, 256).instances]
        except ValueError:
            expected = None
        read = state(page, "return s.parse(argument, 512, 256)", text)
        found = None if "error" in read else [(*i["box"], i["phrase"], i["strength"]) for i in read["items"]]
        if found and not all(phrase for *_, phrase, _ in found):
            found = None  # the editor lets a phrase be written later, the node wants it now
        assert (found is None) == (expected is None), text
        for one, other in zip(found or [], expected or []):
            assert one[4:] == other[4:] and one[:4] == pytest.approx(other[:4], abs=1e-5), text


def test_boxes_stay_boxes_inside_the_picture_and_on_the_grid(page):
    numbers = random.Random(0)
    cases = [[numbers.uniform(-0.5, 1.5) for _ in range(6)] + [numbers.choice((0, 0.03125, 0.3, 1))] for _ in range(300)]
    found = state(
        page,
        """return argument.map(([a, b, c, d, e, f, step], k) => {
            const steps = [step, step], box = s.boxBetween([a, b], [c, d], steps);
            const handle = ["nw", "n", "ne", "e", "se", "s", "sw", "w"][k % 8];
            return [box, s.moved(box, e - 0.5, f - 0.5, steps), s.resized(box, handle, [e, f], steps)];
        })""",
        cases,
    )
    for (*_, step), boxes in zip(cases, found):
        drawn, moved, _ = boxes
        for x0, y0, x1, y1 in boxes:
            assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 and min(x1 - x0, y1 - y0) >= 0.0099
        assert [moved[2] - moved[0], moved[3] - moved[1]] == pytest.approx([drawn[2] - drawn[0], drawn[3] - drawn[1]], abs=2e-5)
        if step == 0.03125:
            assert all((edge / step) % 1 in (0, pytest.approx(0, abs=1e-3)) for edge in drawn)


def test_text_goes_there_and_back_and_colours_are_the_previews(page):
    entries = [SOFA, {**CAT, "phrase": 'a "quoted" \\ \u732b \U0001f408', "note": {"mine": [1]}}]
    assert json.loads(state(page, "return s.toText(s.parse(argument, 1, 1).items)", json.dumps(entries))) == entries
    colours = state(page, "return [...Array(60).keys()].map(s.colour)")
    for number, colour in enumerate(colours):
        assert colour == pytest.approx(preview_colour(number, saturation=0.65), abs=1)


def test_the_console_holds_no_error_of_ours(page, without_us):
    page.page.wait_for_timeout(500)
    assert page.complaints() - without_us == set()
