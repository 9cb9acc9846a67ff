"""The painter as a user has it, in both renderers: what is painted is what is queued, saved, undone, copied and loaded again."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
import torch
from pack.devtools.client import Client
from pack.py.semantic.painting import Painting, apply_painting, resize_labels, serialize_painting
from pack.py.semantic.palettes import PALETTE_NAMES, named_palette
from pack.tests.browser.editors import PAINTER, Fingers, Painter, opened_painter
from PIL import Image

SKY, TREE = ("sky", (6, 230, 230)), ("tree", (4, 200, 3))
NEW = json.dumps({"palette": "ADE20K", "classes": [], "labels": ""})
FIND = 'window.app.graph._nodes.find(node => node.type === "ExemplarySemanticMapPainter")'


@pytest.fixture
def painter(page):
    return opened_painter(page, values=(64, 64, NEW))


@pytest.fixture
def fingers(painter):
    made = Fingers(painter.tab)
    yield made
    made.close()


def halves(width=64, height=64) -> str:
    """Sky above, tree below."""
    labels = torch.zeros(height, width, dtype=torch.uint8)
    labels[height // 2 :] = 1
    return serialize_painting(Painting(labels, (SKY, TREE), "ADE20K"))


def test_brush_rectangle_polygon_fill_and_eraser(painter):
    painter.use("Rectangle", "sky")
    painter.drag((0, 0), (1, 0.5))
    found = painter.labels()
    assert found.shape == (64, 64) and (found[:32] == "sky").all() and (found[32:] == None).all()  # noqa: E711
    painter.use("Fill", "grass")
    painter.click(0.5, 0.75)
    assert (painter.labels()[32:] == "grass").all()
    painter.use("Brush", "tree")
    painter.drag((0.25, 0.25), (0.25, 0.75))
    found = painter.labels()
    rows, columns = np.nonzero(found == "tree")
    assert 11 <= rows.min() <= 13 and 50 <= rows.max() <= 52, "from a quarter to three quarters, and the brush's radius"
    assert 11 <= columns.min() <= 13 and 18 <= columns.max() <= 20
    assert 8 * 32 + 40 < len(rows) < 8 * 32 + 64
    painter.use("Polygon", "house")
    for corner in ((0.6, 0.2), (0.9, 0.2), (0.9, 0.4), (0.6, 0.4)):
        painter.click(*corner)
        painter.tab.wait_for_timeout(30)
    assert "house" not in painter.labels()
    painter.press("Enter")
    house = painter.labels() == "house"
    assert house.sum() == pytest.approx(0.3 * 0.2 * 64 * 64, rel=0.2) and house[15:24, 41:55].all()
    painter.use("Eraser")
    painter.drag((0.75, 0.3), (0.75, 0.3))
    found = painter.labels()
    assert found[19, 48] is None and (found == "house").any()
    painter.use("Rectangle", "void")
    painter.drag((0, 0.9), (1, 1))
    assert (painter.labels()[60:] == "void").all()
    node = apply_painting(painter.painting, 64, 64)
    assert node.palette == named_palette("ADE20K") and int(node.labels[0, 2, 2]) == node.palette.find("sky")


def test_a_double_click_closes_a_polygon_and_escape_gives_it_up(painter):
    painter.use("Polygon", "house")
    for corner in ((0.2, 0.2), (0.8, 0.2)):
        painter.click(*corner)
        painter.tab.wait_for_timeout(600)
    painter.press("Escape")
    for corner in ((0.2, 0.6), (0.8, 0.6)):
        painter.click(*corner)
        painter.tab.wait_for_timeout(600)
    painter.tab.mouse.dblclick(*painter.place(0.8, 0.9))
    house = painter.labels() == "house"
    assert house.any() and not house[:37].any()


def test_pick_takes_the_class_and_gives_the_brush_back(painter):
    painter.give(halves())
    painter.use("Brush", "car")
    painter.use("Pick")
    painter.click(0.5, 0.9)
    painter.drag((0.5, 0.1), (0.5, 0.1))
    assert painter.labels()[6, 32] == "tree"
    painter.tab.keyboard.down("Alt")
    painter.click(0.1, 0.2)
    painter.tab.keyboard.up("Alt")
    painter.drag((0.5, 0.9), (0.5, 0.9))
    assert painter.labels()[57, 32] == "sky"


def test_undo_and_redo_and_the_graph_hears_none_of_it(painter):
    painter.use("Rectangle", "sky")
    painter.drag((0, 0), (1, 1))
    painter.use("Brush", "tree")
    painter.drag((0.2, 0.2), (0.8, 0.2))
    painter.drag((0.2, 0.8), (0.8, 0.8))
    whole = painter.text
    painter.press("Control+z")
    assert (painter.labels()[40:] == "sky").all() and (painter.labels() == "tree").any()
    painter.press("Control+z", "Control+z")
    assert not painter.painting.labels.ne(255).any()
    for _ in range(5):
        painter.press("Control+z")
    assert painter.nodes() == 1
    painter.press("Control+y", "Control+Shift+z", "Control+y", "Control+y")
    assert painter.text == whole
    painter.tool("Remove everything").click()
    assert not painter.painting.labels.ne(255).any()
    painter.tool("Undo").click()
    assert painter.text == whole
    painter.press("Delete", "Backspace", "Control+a")
    assert painter.text == whole and painter.nodes() == 1


def test_the_palettes_are_the_nodes(painter):
    served = painter.tab.evaluate("async () => (await fetch('/extensions/exemplary/palettes.json')).json()")
    assert list(served) == list(PALETTE_NAMES)
    for name, found in served.items():
        palette = named_palette(name)
        assert [entry[0] for entry in found["classes"]] == list(palette.names)
        assert [entry[1] for entry in found["classes"]] == ["#{:02x}{:02x}{:02x}".format(*colour) for colour in palette.colours]
        assert found["void"] == "#{:02x}{:02x}{:02x}".format(*palette.void_colour)
    painter.root.locator("select").select_option("CelebAMask-HQ")
    painter.use("Rectangle", "hair")
    painter.drag((0, 0), (1, 1))
    node = apply_painting(painter.painting, 64, 64)
    assert node.palette == named_palette("CelebAMask-HQ") and bool((node.labels == node.palette.find("hair")).all())


def test_classes_are_searched_added_renamed_coloured_and_removed(painter):
    shown = painter.root.locator(".exp-list .exb-tool:visible")
    assert shown.count() == 151
    painter.root.locator(".exp-search").fill("tr")
    assert 3 <= shown.count() < 20
    painter.root.locator(".exp-search").fill("dragon")
    assert shown.count() == 0
    painter.press("Enter")
    painter.use("Rectangle")
    painter.drag((0, 0), (1, 1))
    assert (painter.labels() == "dragon").all()
    painter.tool("Name of the class").fill("red dragon")
    painter.press("Enter")
    painter.root.locator("input[type=color]").fill("#aa1122")
    assert painter.painting.classes == (("red dragon", (0xAA, 0x11, 0x22)),)
    painter.tool("Name of the class").fill("sky")
    painter.press("Enter")
    assert "already used" in painter.status.inner_text() and painter.painting.classes[0][0] == "red dragon"
    painter.root.locator(".exp-search").fill("a, b")
    painter.press("Enter")
    assert "cannot contain" in painter.status.inner_text()
    painter.root.locator(".exp-search").fill("")
    painter.tool("Remove the class").click()
    assert painter.painting.classes == () and not painter.painting.labels.ne(255).any()
    painter.press("Control+z")
    assert (painter.labels() == "red dragon").all()


def test_keys_paint_without_a_mouse(painter):
    painter.use("Fill", "sky")
    painter.tab.evaluate("() => document.querySelector('.exp-sink').focus()")
    painter.press("Enter")
    assert (painter.labels() == "sky").all()
    painter.root.locator(".exp-search").fill("tree")
    painter.press("Enter")
    painter.tab.evaluate("() => document.querySelector('.exp-sink').focus()")
    painter.press("r", *["Shift+ArrowLeft"] * 5, "Enter", *["Shift+ArrowRight"] * 10, *["ArrowDown"] * 10, "Enter")
    found = painter.labels() == "tree"
    assert 15 * 8 < found.sum() < 26 * 14
    painter.press("b", "[", "[", "]", "Escape", "ArrowUp", "Enter")
    assert painter.nodes() == 1


def test_zoom_and_pan_change_the_view_and_not_the_map(painter):
    painter.give(halves())
    before = painter.root.locator(".exp-canvas").bounding_box()
    painter.click(0.9, 0.1)
    text = painter.text
    painter.tab.mouse.move(*painter.place(0.5, 0.5))
    painter.tab.mouse.wheel(0, -400)
    painter.tab.wait_for_timeout(200)
    larger = painter.root.locator(".exp-canvas").bounding_box()
    assert larger["width"] > 2 * before["width"]
    painter.tab.keyboard.down(" ")
    x, y = before["x"] + before["width"] / 2, before["y"] + before["height"] / 2
    painter.tab.mouse.move(x, y)
    painter.tab.mouse.down()
    painter.tab.mouse.move(x + 40, y + 30, steps=3)
    painter.tab.mouse.up()
    painter.tab.keyboard.up(" ")
    moved = painter.root.locator(".exp-canvas").bounding_box()
    assert [moved["x"] - larger["x"], moved["y"] - larger["y"]] == pytest.approx([40, 30], abs=2)
    assert painter.text == text
    painter.use("Rectangle", "car")
    painter.tab.mouse.move(x, y)
    painter.tab.mouse.down()
    painter.tab.mouse.move(x + 60, y + 60, steps=3)
    painter.tab.mouse.up()
    pixel = moved["width"] / 64
    assert (painter.labels() == "car").sum() == pytest.approx((60 / pixel) ** 2, rel=0.35), (
        "the pointer is where it is seen to be"
    )
    painter.tool("Show the whole map").click()
    assert painter.root.locator(".exp-canvas").bounding_box()["width"] == pytest.approx(before["width"], abs=1)


def test_the_wheel_zooms_the_graph_until_the_painter_is_used(painter):
    painter.tab.evaluate("() => document.activeElement.blur()")
    painter.tab.mouse.move(*painter.place(0.5, 0.5))
    scale = painter.tab.evaluate("() => window.app.canvas.ds.scale")
    painter.tab.mouse.wheel(0, 200)
    painter.tab.wait_for_function("before => window.app.canvas.ds.scale < before", arg=scale)


def test_saved_loaded_copied_and_undone_by_the_graph(painter):
    painter.give(halves())
    painter.use("Brush", "car")
    painter.drag((0.1, 0.5), (0.9, 0.5))
    text = painter.text
    saved = painter.tab.evaluate("() => window.app.graph.serialize()")
    assert saved["nodes"][0]["widgets_values"] == [64, 64, text]
    painter.around.load(saved)
    painter.tab.wait_for_timeout(500)
    again = Painter(painter.around)
    assert again.text == text
    pixels = "() => [...document.querySelector('.exp-canvas').getContext('2d').getImageData(32, 32, 1, 1).data]"
    assert again.tab.evaluate(pixels) == [0, 102, 200, 255], "the car of ADE20K"
    texts = again.tab.evaluate(
        """() => {
            const { canvas, graph } = window.app;
            canvas.selectItems([graph._nodes[0]]);
            canvas.copyToClipboard();
            canvas.pasteFromClipboard();
            const painting = node => node.widgets.find(widget => widget.name === "painting");
            painting(graph._nodes[0]).value = "";
            return graph._nodes.map(node => painting(node).value);
        }"""
    )
    assert texts == ["", text]


def test_undo_of_the_graph_takes_back_what_was_painted(painter):
    tracker = "const t = window.app.extensionManager.workflow.activeWorkflow.changeTracker;"
    length = painter.tab.evaluate(
        f"() => {{ {tracker} (t.captureCanvasState ?? t.checkState).call(t); return t.undoQueue.length }}"
    )
    painter.use("Rectangle", "sky")
    painter.drag((0, 0), (1, 1))
    painter.tab.wait_for_function(f"before => {{ {tracker} return t.undoQueue.length > before }}", arg=length)
    painter.tab.evaluate(f"async () => {{ {tracker} await t.undo() }}")
    painter.tab.wait_for_timeout(500)
    assert not Painter(painter.around).painting.labels.ne(255).any()


def test_what_an_api_user_wrote_is_shown_and_what_is_wrong_is_kept(painter):
    file = io.BytesIO()
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64) % 2).save(file, "PNG")
    classes = [{"name": "a", "color": "#ff0000"}, {"name": "b", "color": "#00ff00"}]
    painter.give({"classes": classes, "labels": base64.b64encode(file.getvalue()).decode()})
    row = "() => [...document.querySelector('.exp-canvas').getContext('2d').getImageData(0, 0, 2, 1).data]"
    assert painter.tab.evaluate(row) == [255, 0, 0, 255, 0, 255, 0, 255]
    for wrong in (
        "{",
        "[]",
        '{"palette": "x"}',
        '{"classes": [1]}',
        '{"labels": "abc"}',
        '{"classes": [], "labels": "data:image/png;base64,AAAA"}',
    ):
        painter.give(wrong)
        assert painter.text == wrong and painter.root.locator(".exb-error").is_visible(), wrong
        painter.drag((0.1, 0.1), (0.9, 0.9))
        assert painter.text == wrong, "nothing is painted over what cannot be read"
    painter.tool("Remove everything").click()
    assert painter.root.locator(".exb-error").count() == 0
    painter.use("Rectangle", "b")
    painter.drag((0, 0), (1, 1))
    assert painter.painting is not None


def test_another_size_is_what_the_node_makes_of_it(painter):
    numbers = np.random.default_rng(0)
    labels = torch.from_numpy(numbers.integers(0, 2, (48, 80)).astype(np.uint8))
    painter.give(serialize_painting(Painting(labels, (SKY, TREE), "ADE20K")))
    painter.use("Brush", "sky")
    painter.drag((0.5, 0.5), (0.5, 0.5))
    painter.press("Control+z")
    assert torch.equal(painter.painting.labels, resize_labels(labels, 64, 64))


def test_the_incoming_map_is_shown_corrected_and_kept(painter, comfyui):
    Image.new("RGB", (96, 48), (70, 130, 180)).save(comfyui.folder / "input" / "street.png")  # Cityscapes' sky
    painter.tab.evaluate(
        f"""() => {{
            const {{ graph }} = window.app, painter = {FIND};
            const [load, read] = ["LoadImage", "ExemplarySemanticMapFromImage"].map(name => {{
                const node = window.LiteGraph.createNode(name);
                graph.add(node);
                return node;
            }});
            load.pos = [900, 150];
            read.pos = [900, 500];
            load.widgets[0].value = "street.png";
            load.connect(0, read, 0);
            read.connect(0, painter, painter.inputs.findIndex(one => one.name === "semantic_map"));
        }}"""
    )
    painter.root.locator(".exp-hint", has_text="Run the workflow once").wait_for()
    painter.tab.evaluate("async () => { await window.app.queuePrompt(0, 1) }")
    painter.status.get_by_text("96 x 48").wait_for(timeout=60_000)
    corner = "() => [...document.querySelector('.exp-canvas').getContext('2d').getImageData(5, 5, 1, 1).data]"
    assert painter.tab.evaluate(corner) == [70, 130, 180, 255]
    painter.use("Rectangle", "car")
    painter.drag((0, 0.5), (1, 1))
    painter.use("Eraser")
    painter.drag((0.5, 0.75), (0.5, 0.75))
    found = painter.labels()
    assert found.shape == (48, 96) and (found[:24] == None).all() and found[36, 48] is None  # noqa: E711
    assert (found[24:] == "car").sum() == 24 * 96 - (found[24:] == None).sum()  # noqa: E711
    painter.tab.evaluate("async () => { await window.app.queuePrompt(0, 1) }")
    painter.tab.wait_for_timeout(1500)
    assert painter.tab.evaluate(corner) == [70, 130, 180, 255]
    painter.tool("Copy the incoming map").click()
    found = painter.labels()
    assert (found[:24] == "sky").all() and found[36, 48] == "sky"
    painter.tab.evaluate(
        f"() => {{ const n = {FIND}; n.disconnectInput(n.inputs.findIndex(one => one.name === 'semantic_map')) }}"
    )
    painter.status.get_by_text("64 x 64").wait_for()
    assert painter.painting.palette == "Cityscapes / BDD100K"


def test_a_run_gives_what_was_painted(painter, comfyui):
    for file in (comfyui.folder / "output").glob("painted*.png"):
        file.unlink()
    client = Client(comfyui.url)
    painter.give(halves())
    prompt = {
        "1": {"class_type": PAINTER, "inputs": {"width": 64, "height": 64, "painting": painter.text}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 1], "filename_prefix": "painted"}},
    }
    client.run(prompt)
    (file,) = (comfyui.folder / "output").glob("painted*.png")
    image = np.array(Image.open(file))
    assert (image[:32] == SKY[1]).all() and (image[32:] == TREE[1]).all()


def test_an_image_behind_is_seen_through_and_never_saved(painter, tmp_path):
    Image.new("RGB", (200, 100), (200, 40, 40)).save(tmp_path / "mine.png")
    painter.root.locator("input[type=file]").first.set_input_files(str(tmp_path / "mine.png"))
    painter.root.locator(".exp-image").wait_for(state="visible")
    opacity = "() => Number(getComputedStyle(document.querySelector('.exp-canvas')).opacity)"
    assert painter.tab.evaluate(opacity) == pytest.approx(0.6)
    painter.tool("Opacity of the map").fill("25")
    assert painter.tab.evaluate(opacity) == pytest.approx(0.25)
    assert "blob:" not in json.dumps(painter.tab.evaluate("() => window.app.graph.serialize()"))
    painter.tool("Set width and height").click()
    painter.status.get_by_text("200 x 104").wait_for()


def test_fingers_paint_zoom_and_never_both(painter, fingers):
    painter.use("Brush", "sky")
    fingers.drag(painter.place(0.2, 0.5), painter.place(0.8, 0.5))
    found = painter.labels() == "sky"
    assert found[32, 14:50].all() and not found[:26].any()
    text = painter.text
    before = painter.root.locator(".exp-canvas").bounding_box()
    fingers.put(0, painter.place(0.4, 0.3))
    fingers.move(0, painter.place(0.45, 0.3))
    fingers.put(1, painter.place(0.6, 0.3))
    fingers.move(0, painter.place(0.3, 0.3))
    fingers.move(1, painter.place(0.8, 0.3))
    fingers.lift(0)
    fingers.move(1, painter.place(0.7, 0.5))
    fingers.lift(1)
    assert painter.text == text, "a pinch paints nothing and takes back what its first finger painted"
    assert painter.root.locator(".exp-canvas").bounding_box()["width"] > 1.5 * before["width"]
    assert painter.tab.evaluate("() => window.app.canvas.ds.scale") == 1, "and does not zoom the graph"
    painter.tool("Show the whole map").click()
    fingers.tap(painter.place(0.5, 0.1))
    assert (painter.labels()[:10] == "sky").any()


def test_a_pen_presses_and_its_other_end_erases(painter):
    painter.use("Brush", "sky")
    session = painter.tab.context.new_cdp_session(painter.tab)
    counts = []
    for y, force in ((0.2, 0.1), (0.8, 1.0)):
        left, top = painter.place(0.5, y)
        pen = {"x": left, "y": top, "pointerType": "pen", "force": force, "button": "left", "buttons": 1, "clickCount": 1}
        for kind in ("mousePressed", "mouseMoved", "mouseReleased"):
            session.send("Input.dispatchMouseEvent", {"type": kind, **pen, **({"buttons": 0} if kind == "mouseReleased" else {})})
        counts.append(int((painter.labels() == "sky").sum()))
    session.detach()
    assert counts[0] > 0 and counts[1] - counts[0] > 2 * counts[0]
    painter.tab.evaluate(
        """([x, y]) => {
            const target = document.elementFromPoint(x, y);
            const pen = { bubbles: true, cancelable: true, pointerId: 1, pointerType: "pen", clientX: x, clientY: y, pressure: 1, button: 5 };
            target.dispatchEvent(new PointerEvent("pointerdown", { ...pen, buttons: 32 }));
            target.dispatchEvent(new PointerEvent("pointerup", { ...pen, pressure: 0 }));
        }""",
        list(painter.place(0.5, 0.8)),
    )
    assert int((painter.labels() == "sky").sum()) < counts[1]


def test_a_painter_in_a_subgraph(painter):
    holder = painter.tab.evaluate(
        f"""() => {{
            const {{ graph }} = window.app;
            const {{ node }} = graph.convertToSubgraph(new Set([{FIND}]));
            window.app.canvas.openSubgraph(node.subgraph, node);
            return node.id;
        }}"""
    )
    painter.tab.wait_for_timeout(800)
    inside = Painter(painter.around)
    inside.root.wait_for(state="visible")
    inside.use("Rectangle", "sky")
    inside.drag((0, 0), (1, 1))
    assert (inside.labels() == "sky").all()
    saved = painter.tab.evaluate("() => (window.app.rootGraph ?? window.app.graph).serialize()")
    painter.around.load(saved)
    painter.tab.wait_for_timeout(500)
    assert (Painter(painter.around).labels() == "sky").all() and holder is not None


def test_strokes_on_a_large_map_stay_fluid(page):
    painter = opened_painter(page, values=(1024, 1024, NEW))
    painter.use("Rectangle", "sky")
    painter.drag((0, 0), (1, 1))
    painter.use("Brush", "tree")
    painter.tool("Brush size").fill("70")  # 128 pixels
    painter.tab.evaluate(
        """() => {
            window.exTimes = [];
            const stage = document.querySelector(".exp-stage");
            for (const capture of [true, false]) stage.addEventListener("pointermove", () => window.exTimes.push(performance.now()), capture);
        }"""
    )
    painter.drag((0.1, 0.1), (0.9, 0.2), (0.1, 0.4), (0.9, 0.5), (0.1, 0.7), (0.9, 0.9), steps=12)
    times = np.array(painter.tab.evaluate("() => window.exTimes")).reshape(-1, 2)
    spent = times[:, 1] - times[:, 0]
    report = f"{len(spent)} moves of a 128 pixel brush: median {np.median(spent):.1f} ms, longest {spent.max():.1f} ms"
    assert len(spent) > 30 and np.median(spent) < 16, report
    assert (painter.labels() == "tree").sum() > 100_000


def test_the_console_holds_no_error_of_ours(page, without_us):
    page.page.wait_for_timeout(500)
    assert page.complaints() - without_us == set()
