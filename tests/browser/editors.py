"""The editors on the nodes, as a user's hand works them: the mouse, fingers and keys of a real browser."""

from __future__ import annotations

import json

import numpy as np
from pack.py.semantic.painting import parse_painting

NODE = "ExemplaryInstanceLayout"
PAINTER = "ExemplarySemanticMapPainter"


class Editor:
    """The first layout node of the page."""

    def __init__(self, page):
        self.tab, self.around = page.page, page
        self.root = self.tab.locator(".exl").first
        self.boxes = self.root.locator(".exl-button")
        self.status = self.root.locator(".exl-status")

    @property
    def text(self) -> str:
        """What the page would queue."""
        return next(node["inputs"]["layout"] for node in self.around.prompt().values() if node["class_type"] == NODE)

    @property
    def value(self) -> list:
        return json.loads(self.text)

    def give(self, value) -> None:
        """Set the widget as a loaded workflow or a script does."""
        text = value if isinstance(value, str) else json.dumps(value)
        self.tab.evaluate("text => { window.app.graph._nodes[0].widgets.find(w => w.name === 'layout').value = text }", text)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """A place of the picture on the screen."""
        picture = self.root.locator(".exl-picture").bounding_box()
        return picture["x"] + x * picture["width"], picture["y"] + y * picture["height"]

    def drag(self, start, end, *modifiers) -> None:
        for key in modifiers:
            self.tab.keyboard.down(key)
        self.tab.mouse.move(*self.place(*start))
        self.tab.mouse.down()
        self.tab.mouse.move(*self.place(*end), steps=4)
        self.tab.mouse.up()
        for key in modifiers:
            self.tab.keyboard.up(key)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.tab.keyboard.press(key)

    def tool(self, label: str):
        return self.root.get_by_label(label, exact=False).first

    def nodes(self) -> int:
        # The host's own undo and delete act in the next frames.
        self.tab.wait_for_timeout(200)
        return self.tab.evaluate("() => window.app.graph._nodes.length")


def opened(page, size=(420, 620), values=(512, 512, "[]")) -> Editor:
    """A layout node alone on the graph, on a grid of 16 pixels, and the view at rest."""
    page.page.evaluate("() => localStorage.removeItem('Exemplary.LayoutEditor.Grid')")
    _show(page, NODE, size, values, ".exl")
    return Editor(page)


def opened_painter(page, size=(460, 660), values=(64, 64, "")) -> Painter:
    """A painter alone on the graph, with a brush of 8 pixels, and the view at rest."""
    page.page.evaluate("() => localStorage.setItem('Exemplary.Painter.Brush', 8)")
    _show(page, PAINTER, size, values, ".exp")
    return Painter(page)


def _show(page, kind: str, size, values, selector: str) -> None:
    node = {"id": 1, "type": kind, "pos": [200, 150], "size": list(size), "flags": {}, "order": 0, "mode": 0, "properties": {}}
    view = {"ds": {"scale": 1, "offset": [0, 0]}}
    workflow = {"version": 0.4, "last_node_id": 1, "last_link_id": 0, "links": [], "groups": [], "extra": view}
    page.load({**workflow, "nodes": [{**node, "widgets_values": list(values)}]})
    page.page.locator(selector).first.wait_for(state="visible", timeout=30_000)
    page.page.wait_for_function(
        """selector => {
            const { canvas } = window.app;
            canvas.maximumFps = 5; // drawn in software, a faster graph starves everything else
            canvas.ds.scale = 1;
            canvas.ds.offset[0] = canvas.ds.offset[1] = 0;
            canvas.setDirty(true, true);
            const all = document.querySelectorAll(selector), { x, y, width, height } = all[0].getBoundingClientRect();
            const now = [x, y, width, height].map(Math.round).join(), still = window.exlBefore === now;
            window.exlBefore = now;
            return all.length === 1 && still && x > 190 && y > 200; // the Vue renderer spreads the nodes of older files
        }""",
        arg=selector,
        polling=300,
    )


class Painter:
    """The first painter of the page."""

    def __init__(self, page):
        self.tab, self.around = page.page, page
        self.root = self.tab.locator(".exp").first
        self.status = self.root.locator(".exb-status")

    @property
    def text(self) -> str:
        """What the page would queue."""
        return next(node["inputs"]["painting"] for node in self.around.prompt().values() if node["class_type"] == PAINTER)

    @property
    def painting(self):
        """The same as the node reads it."""
        return parse_painting(self.text)

    def labels(self):
        """Which class is where: names [h][w] as an array, None for unpainted, "void" for void."""
        found = self.painting
        names = np.array([*(name for name, _ in found.classes), *[None] * (256 - len(found.classes))], dtype=object)
        names[254] = "void"
        return names[found.labels.numpy()]

    def give(self, value) -> None:
        """Set the widget as a loaded workflow or a script does."""
        text = value if isinstance(value, str) else json.dumps(value)
        self.tab.evaluate(
            """async text => {
                const widget = window.app.graph._nodes.find(n => n.type === "ExemplarySemanticMapPainter").widgets.find(w => w.name === "painting");
                widget.value = text;
                await new Promise(done => setTimeout(done, 300));
            }""",
            text,
        )

    def place(self, x: float, y: float) -> tuple[float, float]:
        """A point of the map, 0..1, on the screen."""
        canvas = self.root.locator(".exp-canvas").bounding_box()
        return canvas["x"] + x * canvas["width"], canvas["y"] + y * canvas["height"]

    def drag(self, *points, steps=4) -> None:
        self.tab.mouse.move(*self.place(*points[0]))
        self.tab.mouse.down()
        for point in points[1:]:
            self.tab.mouse.move(*self.place(*point), steps=steps)
        self.tab.mouse.up()

    def click(self, x: float, y: float) -> None:
        self.tab.mouse.click(*self.place(x, y))

    def press(self, *keys: str) -> None:
        for key in keys:
            self.tab.keyboard.press(key)

    def tool(self, label: str):
        return self.root.get_by_label(label, exact=False).first

    def use(self, tool: str, name: str | None = None) -> None:
        """Choose a tool by the start of its label, and a class by its name."""
        self.root.locator(f".exb-tools [type=button][aria-label^='{tool}']").click()
        if name is not None:
            self.root.locator(".exp-search").fill(name)
            self.press("Enter")

    def nodes(self) -> int:
        self.tab.wait_for_timeout(200)
        return self.tab.evaluate("() => window.app.graph._nodes.length")


class Fingers:
    """Touches of a page, by the browser's own input protocol. Every finger has a number."""

    def __init__(self, tab):
        self.session = tab.context.new_cdp_session(tab)
        self.session.send("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 5})
        self.down: dict[int, tuple[float, float]] = {}

    def _send(self, kind: str) -> None:
        points = [{"x": x, "y": y, "id": number} for number, (x, y) in self.down.items()]
        self.session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    def put(self, number: int, at: tuple[float, float]) -> None:
        self.down[number] = at
        self._send("touchStart")

    def move(self, number: int, to: tuple[float, float], steps: int = 4) -> None:
        x, y = self.down[number]
        for step in range(1, steps + 1):
            self.down[number] = (x + (to[0] - x) * step / steps, y + (to[1] - y) * step / steps)
            self._send("touchMove")

    def lift(self, number: int) -> None:
        del self.down[number]
        self._send("touchEnd")

    def tap(self, at: tuple[float, float], times: int = 1) -> None:
        for _ in range(times):
            self.put(0, at)
            self.lift(0)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.put(0, start)
        self.move(0, end)
        self.lift(0)

    def close(self) -> None:
        self.session.send("Emulation.setTouchEmulationEnabled", {"enabled": False})
        self.session.detach()
