/**
 * The picture of the painter: a canvas over an image, zoomed and moved, worked by mouse, fingers, pen and keys.
 *
 * Pointers are read relative to the canvas' rectangle, so neither the graph's zoom nor the picture's own matters. One finger paints, two move
 * and zoom; the second finger takes back what the first one began.
 */

import { element } from "./base_dom.js";
import { union } from "./painter_raster.js";

const SVG = "http://www.w3.org/2000/svg";
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const TOOL_KEYS = { b: "brush", e: "erase", g: "fill", p: "polygon", r: "rectangle", i: "pick" };
const ZOOM_STEP = 1.25;
const ZOOMS = [0.02, 64]; // screen pixels for a pixel of the map
const NEAR = 9; // screen pixels: a click on the first corner closes a polygon
const ERASER_BUTTON = 5; // of a pen

/**
 * @param owner what the stage asks and tells: `painting`, `tool`, `radius`, `words`, `label(erase)` (what to paint, null for nothing),
 *   `changed(area)` (pixels to draw anew), `finish(area)`, `pick(point)`, `resizeBrush(factor)`, `setTool(name)`, `ready`.
 */
export class Stage {
  constructor(owner) {
    this.owner = owner;
    this.image = element("img", "exp-image", { alt: "", draggable: "false", hidden: "" });
    this.canvas = element("canvas", "exp-canvas");
    this.overlay = document.createElementNS(SVG, "svg");
    this.overlay.setAttribute("class", "exp-overlay");
    this.overlay.setAttribute("preserveAspectRatio", "none");
    this.outlines = ["exp-dark", "exp-light"].map((name) => {
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("class", name);
      path.setAttribute("vector-effect", "non-scaling-stroke");
      this.overlay.append(path);
      return path;
    });
    this.sheet = element("div", "exp-sheet", {}, [this.image, this.canvas, this.overlay]);
    this.hint = element("div", "exp-hint");
    // Holds the keyboard: of the one kind of element whose Ctrl+Z the host leaves alone.
    this.sink = element("input", "exp-sink", { type: "button", value: "" });
    this.root = element("div", "exp-stage", {}, [this.sheet, this.hint, this.sink]);
    this.scale = 1;
    this.origin = [0, 0]; // of the sheet, in the stage
    this.fitted = true;
    this.cursor = null; // where the pointer or the keys are, in pixels of the map
    this.corners = []; // of the polygon or rectangle that is being drawn
    this.last = null; // where the last stroke ended
    this.fingers = new Map(); // pointer -> [x, y] on the screen
    this.gesture = null; // {move(event), end(finished)} of the pointer that paints or moves
    this.spaceDown = false;
    this.gone = new AbortController();
    this.listen();
  }

  destroy() {
    this.gone.abort();
    this.observer.disconnect();
  }

  listen() {
    const { root } = this;
    root.addEventListener("pointerdown", (event) => this.press(event));
    root.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) root.addEventListener(name, (event) => this.release(event, name === "pointerup"));
    root.addEventListener("pointerleave", () => !this.gesture && this.hover(null));
    root.addEventListener("dblclick", () => this.owner.tool === "polygon" && this.closePolygon());
    root.addEventListener("contextmenu", (event) => this.fingers.size && event.preventDefault()); // of a long press
    // While the picture has the keyboard the wheel is its own, and the Vue renderer is told so.
    this.sink.addEventListener("focus", () => root.setAttribute("data-capture-wheel", "true"));
    this.sink.addEventListener("blur", () => root.removeAttribute("data-capture-wheel"));
    root.addEventListener("keydown", (event) => event.key === " " && (this.spaceDown = true));
    root.addEventListener("keyup", (event) => event.key === " " && (this.spaceDown = false));
    window.addEventListener("pointerup", (event) => this.fingers.delete(event.pointerId), { capture: false, signal: this.gone.signal });
    this.observer = new ResizeObserver(() => (this.fitted ? this.fit() : this.arrange()));
    this.observer.observe(root);
  }

  // The view.

  /** Draw everything anew: another size, other colours. */
  redraw() {
    const { width, height } = this.owner.painting;
    const other = this.canvas.width !== width || this.canvas.height !== height;
    if (other) {
      this.canvas.width = width;
      this.canvas.height = height;
      this.overlay.setAttribute("viewBox", `0 0 ${width} ${height}`);
      this.last = null;
      this.corners = [];
    }
    this.paint([0, 0, width, height]);
    if (other) this.fit();
    else this.outline();
  }

  /** Draw a rectangle of the map. */
  paint(area) {
    if (!area) return;
    this.context ??= this.canvas.getContext("2d");
    const [left, top, right, bottom] = area;
    this.context.putImageData(new ImageData(this.owner.painting.pixels(area), right - left, bottom - top), left, top);
  }

  setImage(address) {
    if (this.image.getAttribute("src") === (address ?? null)) return;
    address ? this.image.setAttribute("src", address) : this.image.removeAttribute("src");
    this.image.hidden = !address;
  }

  fit() {
    const [width, height] = [this.root.clientWidth, this.root.clientHeight];
    if (!width || !height) return;
    const { painting } = this.owner;
    this.fitted = true;
    this.scale = Math.min((width - 12) / painting.width, (height - 12) / painting.height);
    this.origin = [(width - painting.width * this.scale) / 2, (height - painting.height * this.scale) / 2];
    this.arrange();
  }

  /** Zoom by a factor about a point of the stage, by default its middle. */
  zoom(factor, [x, y] = [this.root.clientWidth / 2, this.root.clientHeight / 2]) {
    const wanted = Math.min(Math.max(this.scale * factor, ZOOMS[0]), ZOOMS[1]);
    const real = wanted / this.scale;
    this.origin = [x - (x - this.origin[0]) * real, y - (y - this.origin[1]) * real];
    this.scale = wanted;
    this.fitted = false;
    this.arrange();
  }

  pan(dx, dy) {
    this.origin = [this.origin[0] + dx, this.origin[1] + dy];
    this.fitted = false;
    this.arrange();
  }

  arrange() {
    const { width, height } = this.owner.painting;
    const [stageWidth, stageHeight] = [this.root.clientWidth, this.root.clientHeight];
    const keep = (at, size, room) => Math.min(Math.max(at, 40 - size), room - 40); // a part always stays in sight
    if (stageWidth > 80 && stageHeight > 80) {
      this.origin = [keep(this.origin[0], width * this.scale, stageWidth), keep(this.origin[1], height * this.scale, stageHeight)];
    }
    Object.assign(this.sheet.style, {
      left: `${this.origin[0]}px`,
      top: `${this.origin[1]}px`,
      width: `${width * this.scale}px`,
      height: `${height * this.scale}px`,
    });
    this.outline();
    this.owner.viewed();
  }

  /** How many screen pixels a CSS pixel of the stage has: the graph's zoom. */
  get enlarged() {
    return this.root.getBoundingClientRect().width / (this.root.offsetWidth || 1) || 1;
  }

  /** Where a pointer is in pixels of the map, beyond it too. */
  point({ clientX, clientY }) {
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    return [((clientX - left) / width) * this.canvas.width, ((clientY - top) / height) * this.canvas.height];
  }

  /** The same in CSS pixels of the stage. */
  place({ clientX, clientY }) {
    const { left, top } = this.root.getBoundingClientRect();
    return [(clientX - left) / this.enlarged, (clientY - top) / this.enlarged];
  }

  hover(point) {
    this.cursor = point;
    this.outline();
    this.owner.viewed();
  }

  /** The brush's circle, a cross, or the shape that is being drawn. */
  outline() {
    const { tool, radius, painting } = this.owner;
    const parts = [];
    const line = (points, closed) => parts.push(`M${points.map((point) => point.join(" ")).join("L")}${closed ? "Z" : ""}`);
    const { corners, cursor } = this;
    if (tool === "rectangle" && corners.length && cursor) {
      const [[ax, ay], [bx, by]] = [corners[0], cursor];
      line([[ax, ay], [bx, ay], [bx, by], [ax, by]], true);
    } else if (tool === "polygon" && corners.length) {
      line(cursor ? [...corners, cursor] : corners, false);
      const r = 4 / this.scale;
      const [x, y] = corners[0];
      line([[x - r, y - r], [x + r, y - r], [x + r, y + r], [x - r, y + r]], true);
    }
    if (cursor && (tool === "brush" || tool === "erase") && radius * this.scale > 2.5) {
      const [x, y] = cursor;
      parts.push(`M${x - radius} ${y}a${radius} ${radius} 0 1 0 ${radius * 2} 0a${radius} ${radius} 0 1 0 ${-radius * 2} 0`);
    } else if (cursor && this.byKeys) {
      const [[x, y], r] = [cursor, 9 / this.scale];
      parts.push(`M${x - r} ${y}h${r * 2}M${x} ${y - r}v${r * 2}`);
    }
    for (const path of this.outlines) path.setAttribute("d", parts.join(""));
    this.root.classList.toggle("exp-circle", Boolean(cursor) && (tool === "brush" || tool === "erase") && radius * this.scale > 2.5);
    this.hint.hidden = !this.owner.hintText;
    if (this.hint.textContent !== this.owner.hintText) this.hint.textContent = this.owner.hintText;
    this.sink.setAttribute("aria-label", this.owner.words("stage", { width: painting.width, height: painting.height }));
  }

  // Pointers.

  press(event) {
    const eraser = event.pointerType === "pen" && event.button === ERASER_BUTTON;
    if (event.button !== 0 && !eraser) return;
    event.preventDefault();
    this.sink.focus({ preventScroll: true });
    this.byKeys = false;
    if (event.pointerType === "touch") this.fingers.set(event.pointerId, [event.clientX, event.clientY]);
    if (this.fingers.size > 1) return this.pinch();
    if (this.gesture || !this.owner.ready) return;
    if (event.isTrusted) this.root.setPointerCapture(event.pointerId); // a scripted pointer cannot be captured
    const point = this.point(event);
    this.hover(point);
    if (this.spaceDown) this.gesture = this.panning(event);
    else if (event.altKey || this.owner.tool === "pick") this.owner.pick(point);
    else this.gesture = this.start(event, point, eraser);
    if (this.gesture) this.gesture.pointer = event.pointerId;
  }

  move(event) {
    if (this.fingers.has(event.pointerId)) {
      const before = [...this.fingers.values()];
      this.fingers.set(event.pointerId, [event.clientX, event.clientY]);
      if (this.pinching) return this.pinched(before, [...this.fingers.values()]);
    }
    if (event.buttons & 4) return; // the middle button moves the graph
    if (this.gesture && event.pointerId === this.gesture.pointer) this.gesture.move(event);
    else if (!this.gesture && !this.pinching) {
      this.byKeys = false;
      this.hover(this.point(event));
    }
  }

  release(event, finished) {
    this.fingers.delete(event.pointerId);
    if (this.fingers.size === 0) this.pinching = false;
    if (!this.gesture || event.pointerId !== this.gesture.pointer) return;
    const { gesture } = this;
    this.gesture = null;
    gesture.end(finished, event);
    if (event.pointerType === "touch") this.hover(null);
  }

  /** Stop what is being drawn and take it back. */
  abandon() {
    const { gesture } = this;
    this.gesture = null;
    gesture?.end(false);
    this.corners = [];
    this.outline();
  }

  pinch() {
    if (this.gesture) this.abandon();
    this.pinching = true;
    this.hover(null);
  }

  pinched(before, now) {
    if (now.length < 2) return;
    const middle = ([a, b]) => [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
    const apart = ([a, b]) => Math.hypot(a[0] - b[0], a[1] - b[1]) || 1;
    const [[fromX, fromY], [toX, toY]] = [middle(before), middle(now)];
    this.pan((toX - fromX) / this.enlarged, (toY - fromY) / this.enlarged);
    this.zoom(apart(now) / apart(before), this.place({ clientX: toX, clientY: toY }));
  }

  panning({ clientX, clientY }) {
    let [x, y] = [clientX, clientY];
    this.root.classList.add("exp-panning");
    return {
      move: (event) => {
        this.pan((event.clientX - x) / this.enlarged, (event.clientY - y) / this.enlarged);
        [x, y] = [event.clientX, event.clientY];
      },
      end: () => this.root.classList.remove("exp-panning"),
    };
  }

  /** Begin what the tool does at a point. */
  start(event, point, eraser) {
    const { tool } = this.owner;
    if (eraser || tool === "brush" || tool === "erase") return this.stroking(event, point, eraser || tool === "erase");
    if (tool === "rectangle") return this.dragging(point);
    if (tool === "fill") this.fill(point);
    if (tool === "polygon") this.addCorner(point);
    return null;
  }

  stroking(event, point, erase) {
    const { owner } = this;
    const label = owner.label(erase);
    if (label === null) return null;
    let at = event.shiftKey && this.last ? this.last : point;
    let area = null;
    const width = (next) => (next.pointerType === "pen" ? owner.radius * (0.25 + 0.75 * (next.pressure || 0.5)) : owner.radius);
    const draw = (next, to) => {
      const dirty = owner.painting.raster.stroke(at, to, width(next), label);
      at = to;
      if (!dirty) return;
      area = union(area, dirty);
      this.dirty = union(this.dirty, dirty);
    };
    draw(event, point);
    this.show();
    return {
      move: (next) => {
        const steps = next.getCoalescedEvents?.() ?? [];
        for (const step of steps.length ? steps : [next]) draw(step, this.point(step));
        this.show();
        this.hover(this.point(next));
      },
      end: (finished) => {
        this.last = finished ? at : this.last;
        owner.finish(finished ? area : undefined);
      },
    };
  }

  /** Draw what changed once a frame. */
  show() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      const area = this.dirty;
      this.dirty = null;
      const { width, height } = this.owner.painting;
      if (area && area[2] <= width && area[3] <= height) this.paint(area);
    });
  }

  dragging(point) {
    this.corners = [point];
    return {
      move: (event) => this.hover(this.point(event)),
      end: (finished, event) => {
        const corner = this.corners[0];
        this.corners = [];
        if (finished) this.apply((raster, label) => raster.rectangle(corner, this.point(event), label));
        this.outline();
      },
    };
  }

  fill(point) {
    const { painting } = this.owner;
    painting.pair();
    this.apply((raster, label) => raster.fill(point, label, painting.seen));
  }

  addCorner(point) {
    const [first] = this.corners;
    const near = first && Math.hypot(point[0] - first[0], point[1] - first[1]) * this.scale * this.enlarged < NEAR;
    if (near && this.corners.length > 2) return this.closePolygon();
    const latest = this.corners.at(-1);
    if (latest && latest[0] === point[0] && latest[1] === point[1]) return undefined;
    this.corners.push(point);
    this.outline();
    return undefined;
  }

  closePolygon() {
    const { corners } = this;
    this.corners = [];
    if (corners.length > 2) this.apply((raster, label) => raster.polygon(corners, label));
    this.outline();
  }

  apply(act) {
    const label = this.owner.label(false);
    if (label === null) return;
    const area = act(this.owner.painting.raster, label);
    this.paint(area);
    this.owner.finish(area ?? undefined);
  }

  // Keys and wheel.

  /** Uses a key and says so. */
  key(event) {
    const control = event.ctrlKey || event.metaKey;
    const arrow = ARROWS[event.key];
    if (control) return false;
    if (arrow) this.step(arrow, event.shiftKey);
    else if (event.key === "Enter") this.enter(event);
    else if (event.key === "Escape") this.abandon();
    else if (event.key === "Backspace" && this.corners.length) this.corners.pop();
    else if (event.key === "[" || event.key === "]") this.owner.resizeBrush(event.key === "]" ? ZOOM_STEP : 1 / ZOOM_STEP);
    else if (event.key === "+" || event.key === "=") this.zoom(ZOOM_STEP);
    else if (event.key === "-") this.zoom(1 / ZOOM_STEP);
    else if (event.key === "0") this.fit();
    else if (TOOL_KEYS[event.key.toLowerCase()] && !event.altKey) this.owner.setTool(TOOL_KEYS[event.key.toLowerCase()]);
    else return event.key === " ";
    this.outline();
    return true;
  }

  step([dx, dy], far) {
    const { width, height } = this.owner.painting;
    const [x, y] = this.cursor ?? [width / 2, height / 2];
    const by = far ? Math.max(Math.round(width / 32), 1) : 1;
    const inside = (value, size) => Math.min(Math.max(Math.floor(value) + 0.5, 0.5), size - 0.5);
    this.byKeys = true;
    this.hover([inside(x + dx * by, width), inside(y + dy * by, height)]);
  }

  /** The tool at the keyboard's cursor. */
  enter(event) {
    const { tool } = this.owner;
    if (!this.owner.ready) return;
    const { width, height } = this.owner.painting;
    const point = this.cursor ?? [width / 2, height / 2];
    const same = this.corners.at(-1)?.every((value, at) => value === point[at]);
    if (tool === "pick") this.owner.pick(point);
    else if (tool === "polygon" && same) this.closePolygon();
    else if (tool === "rectangle" && this.corners.length) {
      const [corner] = this.corners;
      this.corners = [];
      this.apply((raster, label) => raster.rectangle(corner, point, label));
    } else if (tool === "rectangle") this.corners = [point];
    else this.start({ pointerType: "mouse", shiftKey: event.shiftKey }, point, false)?.end(true);
  }

  /** The wheel zooms the picture while it has the keyboard; else the graph, as everywhere. */
  wheel(event) {
    if (!this.root.contains(event.target) || document.activeElement !== this.sink) return false;
    this.zoom(Math.exp(-event.deltaY / (event.ctrlKey ? 120 : 400)), this.place(event));
    return true;
  }
}
