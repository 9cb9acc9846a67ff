/**
 * The picture of a layout: one element a box, drawn, moved and resized by pointer and keys.
 *
 * Boxes are <input type="button">: focusable, spoken, and of the one kind of element whose Ctrl+Z the host leaves alone (it listens on the
 * window in the capture phase and asks document.activeElement). All positions are in percent, so any zoom of the graph and any size of the node
 * stay sharp; pointers are read relative to the picture's rectangle, so a scaled parent does not matter.
 */

import { element } from "./base_dom.js";
import { boxBetween, colour, moved, resized } from "./layout_state.js";

const HANDLES = ["nw", "n", "ne", "e", "se", "s", "sw", "w"];
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const CLICK = 4; // screen pixels: less is a click, not a drag

const DOUBLE_MS = 500; // between the taps of a double tap

const percent = (value) => `${value * 100}%`;
const area = ([x0, y0, x1, y1]) => (x1 - x0) * (y1 - y0);

/**
 * @param owner what the stage asks and tells: `items`, `incoming` (items of other nodes, only shown), `offset`
 *   (how many instances come before the first item), `selected` (id or null), `steps` ([x, y] of the grid, 0 for none), `pixel` ([x, y]),
 *   `words(key, values)`, `select(id)`, `draw(box)`, `change(id, values, kind)`, `settle()`, `keys(event)`.
 */
export class Stage {
  constructor(owner) {
    this.owner = owner;
    this.boxes = new Map(); // id -> {frame, button, tag, label}
    this.editing = null; // id of the item whose phrase is open
    this.pressed = null; // id of the item that was pressed last; a captured pointer's dblclick does not name it
    this.tapped = 0; // when a finger or pen tapped it
    this.fingers = new Set(); // pointers of touches that are down
    this.cancel = null; // ends the running gesture
    this.image = element("img", "exl-image", { alt: "", draggable: "false" });
    this.grid = element("div", "exl-grid");
    this.hint = element("div", "exl-hint");
    this.ghosts = element("div", "exl-tags", { "aria-hidden": "true" });
    this.tags = element("div", "exl-tags", { "aria-hidden": "true" }); // above all boxes, so that every phrase can be read
    this.rubber = element("div", "exl-rubber");
    this.handles = element("div", "exl-handles");
    for (const name of HANDLES) this.handles.append(element("div", `exl-handle exl-${name}`, { "data-handle": name }));
    this.field = element("textarea", "exl-field", { rows: "2", spellcheck: "true", dir: "auto" });
    // Holds the keyboard when no box does, so that undo stays here; Enter draws a box without a mouse.
    this.sink = element("input", "exl-sink", { type: "button", value: "" });
    this.picture = element("div", "exl-picture", { role: "group" });
    this.picture.append(this.image, this.grid, this.ghosts, this.sink, this.hint, this.tags, this.rubber, this.handles, this.field);
    this.root = element("div", "exl-stage", {}, [this.picture]);
    this.listen();
  }

  /** The node is gone. */
  destroy() {
    this.gone.abort();
  }

  listen() {
    this.gone = new AbortController();
    this.picture.addEventListener("pointerdown", (event) => this.press(event));
    this.picture.addEventListener("dblclick", () => this.pressed !== null && this.edit(this.pressed));
    this.picture.addEventListener("contextmenu", (event) => this.fingers.size && event.preventDefault()); // of a long press
    for (const name of ["pointerup", "pointercancel"]) {
      window.addEventListener(name, (event) => this.fingers.delete(event.pointerId), { capture: true, signal: this.gone.signal });
    }
    this.picture.addEventListener("keydown", (event) => this.key(event));
    this.picture.addEventListener("focusin", (event) => {
      const id = this.idOf(event.target);
      if (id !== null && id !== this.owner.selected) this.owner.select(id);
    });
    this.field.addEventListener("input", () => this.type());
    this.field.addEventListener("blur", () => this.close());
  }

  idOf(target) {
    const id = target.closest?.("[data-id]")?.dataset.id;
    return id === undefined ? null : Number(id);
  }

  /** Draw what the owner holds. */
  update({ width, height, background }) {
    const { items, incoming, selected, steps, words, offset } = this.owner;
    this.picture.style.setProperty("--exl-ratio", String(width / height));
    this.picture.setAttribute("aria-label", words("stage", { width, height, count: items.length }));
    if (this.image.getAttribute("src") !== (background ?? null)) {
      background ? this.image.setAttribute("src", background) : this.image.removeAttribute("src");
    }
    this.image.hidden = !background;
    this.grid.hidden = !steps[0];
    if (!this.grid.hidden) this.gridLines(steps);
    this.hint.hidden = items.length + incoming.length > 0;
    this.hint.textContent = words("hint");
    this.sink.setAttribute("aria-label", words("add"));
    this.drawGhosts();
    this.drawBoxes(items, selected);
    const chosen = items.find(({ id }) => id === selected);
    this.handles.hidden = !chosen;
    if (chosen) {
      place(this.handles, chosen.box);
      this.handles.style.setProperty("--exl-colour", rgb(items.indexOf(chosen) + offset));
    }
    this.placeField();
  }

  gridLines([x, y]) {
    let every = 1; // a fine grid snaps, but only some of its lines are drawn
    while (Math.min(x, y) * every < 1 / 24) every *= 2;
    const lines = (way, step) => `repeating-linear-gradient(${way}, var(--exl-line) 0 1px, transparent 1px ${percent(step)})`;
    this.grid.style.backgroundImage = `${lines("to right", x * every)}, ${lines("to bottom", y * every)}`;
  }

  /** The boxes of the incoming instances, behind the node's own. */
  drawGhosts() {
    const { incoming } = this.owner;
    while (this.ghosts.children.length > incoming.length) this.ghosts.lastChild.remove();
    incoming.forEach(({ box, phrase }, index) => {
      if (!this.ghosts.children[index]) this.ghosts.append(element("div", "exl-ghost", {}, [element("span", "exl-label", { dir: "auto" })]));
      const ghost = this.ghosts.children[index];
      place(ghost, box);
      ghost.style.setProperty("--exl-colour", rgb(index));
      ghost.firstChild.textContent = `${index + 1} ${phrase}`;
    });
  }

  drawBoxes(items, selected) {
    const { offset } = this.owner;
    const gone = new Set(this.boxes.keys());
    // Small boxes lie on top, as in Instance Map Preview, so that every box can be reached.
    const order = items.map(({ box }, index) => [area(box), index]).sort((a, b) => b[0] - a[0] || a[1] - b[1]);
    const layer = new Map(order.map(([, index], place) => [index, place + 1]));
    items.forEach((entry, index) => {
      gone.delete(entry.id);
      const { frame, button, tag, label } = this.boxes.get(entry.id) ?? this.addBox(entry.id);
      place(frame, entry.box);
      place(tag, entry.box);
      frame.style.zIndex = String(layer.get(index));
      for (const part of [frame, tag]) part.style.setProperty("--exl-colour", rgb(index + offset));
      frame.classList.toggle("exl-selected", entry.id === selected);
      for (const part of [frame, tag]) part.classList.toggle("exl-wordless", !entry.phrase.trim());
      frame.style.setProperty("--exl-strength", String(Math.min(entry.strength, 1)));
      label.textContent = `${index + offset + 1} ${entry.phrase.trim() || this.owner.words("noPhrase")}`;
      button.setAttribute("aria-label", this.spoken(entry, index));
      button.setAttribute("aria-pressed", String(entry.id === selected));
      // The order of focus is the order of the list.
      if (frame.previousElementSibling !== this.lastBox(items, index)) this.lastBox(items, index).after(frame);
    });
    for (const id of gone) {
      this.boxes.get(id).frame.remove();
      this.boxes.get(id).tag.remove();
      this.boxes.delete(id);
    }
  }

  lastBox(items, index) {
    return index === 0 ? this.hint : this.boxes.get(items[index - 1].id).frame;
  }

  addBox(id) {
    const button = element("input", "exl-button", { type: "button", value: "" });
    const label = element("span", "exl-label", { dir: "auto" });
    const frame = element("div", "exl-box", { "data-id": String(id) }, [button]);
    const tag = element("div", "exl-tag", {}, [label]);
    const made = { frame, button, tag, label };
    this.boxes.set(id, made);
    this.hint.after(frame);
    this.tags.append(tag);
    return made;
  }

  spoken({ box, phrase }, index) {
    const [left, top, right, bottom] = box.map((value) => Math.round(value * 100));
    const values = { number: index + this.owner.offset + 1, phrase: phrase.trim() || this.owner.words("noPhrase"), left, top };
    return this.owner.words("box", { ...values, width: right - left, height: bottom - top });
  }

  /** Keyboard focus to a box, or to the picture. */
  focus(id) {
    (this.boxes.get(id)?.button ?? this.sink).focus({ preventScroll: true });
  }

  /** Where a pointer is, 0..1 of the picture, beyond it too. */
  point(event) {
    const { left, top, width, height } = this.picture.getBoundingClientRect();
    return [(event.clientX - left) / width, (event.clientY - top) / height];
  }

  press(event) {
    if (event.button !== 0 || event.target === this.field) return;
    event.preventDefault(); // no selection of text, no native drag; focus is ours to give
    if (event.pointerType === "touch") this.fingers.add(event.pointerId);
    if (this.fingers.size > 1) this.cancel?.(); // a pinch draws nothing
    if (this.cancel || this.fingers.size > 1) return; // one gesture at a time
    const handle = event.target.dataset?.handle;
    const id = handle ? this.owner.selected : event.shiftKey ? null : this.idOf(event.target);
    const entry = this.owner.items.find((one) => one.id === id);
    if (this.editing !== null) this.close();
    this.tapped = this.pressed === id && event.pointerType !== "mouse" ? this.tapped : 0;
    this.pressed = handle ? null : (entry?.id ?? null);
    if (entry && !handle) {
      this.owner.select(entry.id);
      this.focus(entry.id);
    } else if (!entry) {
      this.owner.select(null);
      this.focus(null);
    }
    this.drag(event, entry, handle);
  }

  drag(event, entry, handle) {
    const start = this.point(event);
    const from = [event.clientX, event.clientY];
    const pointer = event.pointerId;
    const kind = `drag ${pointer} ${event.timeStamp}`;
    const stop = new AbortController();
    let moving = false;
    let drawn = null;
    this.picture.setPointerCapture(pointer);
    const move = (next) => {
      if (next.pointerId !== pointer) return;
      moving ||= Math.hypot(next.clientX - from[0], next.clientY - from[1]) >= CLICK;
      if (!moving) return;
      const at = this.point(next);
      const steps = next.ctrlKey || next.metaKey ? [0, 0] : this.owner.steps;
      if (!entry) {
        drawn = boxBetween(start, at, steps);
        this.rubber.classList.add("exl-on");
        place(this.rubber, drawn);
        return;
      }
      const box = handle ? resized(entry.box, handle, at, steps) : moved(entry.box, at[0] - start[0], at[1] - start[1], steps);
      this.owner.change(entry.id, { box }, kind);
    };
    const end = (finished, at = 0) => {
      stop.abort();
      this.cancel = null;
      this.rubber.classList.remove("exl-on");
      if (!finished && entry && moving) this.owner.change(entry.id, { box: entry.box }, kind);
      if (finished && drawn) this.owner.draw(drawn);
      else this.owner.settle();
      if (moving || !entry || handle || !finished || event.pointerType === "mouse") return;
      const twice = at - this.tapped < DOUBLE_MS;
      this.tapped = twice ? 0 : at;
      if (twice) this.edit(entry.id);
    };
    this.cancel = () => end(false);
    const { signal } = stop;
    this.picture.addEventListener("pointermove", move, { signal });
    this.picture.addEventListener("pointerup", (next) => next.pointerId === pointer && end(true, next.timeStamp), { signal });
    this.picture.addEventListener("pointercancel", (next) => next.pointerId === pointer && end(false), { signal });
    window.addEventListener("keydown", (next) => {
      if (next.key !== "Escape") return;
      next.preventDefault();
      next.stopImmediatePropagation();
      end(false);
    }, { signal, capture: true });
  }

  key(event) {
    const id = this.idOf(event.target);
    const entry = this.owner.items.find((one) => one.id === id);
    if (event.target === this.field) return this.fieldKey(event);
    if (!entry) return this.sinkKey(event);
    const arrow = ARROWS[event.key];
    if (arrow && !event.altKey) {
      event.preventDefault();
      const fine = event.ctrlKey || event.metaKey || !this.owner.steps[0];
      const by = fine ? this.owner.pixel : this.owner.steps;
      const steps = fine ? [0, 0] : this.owner.steps;
      const [dx, dy] = [arrow[0] * by[0], arrow[1] * by[1]];
      const corner = [entry.box[2] + dx, entry.box[3] + dy];
      const handle = `${dx ? "e" : ""}${dy ? "s" : ""}`;
      const box = event.shiftKey ? resized(entry.box, handle, corner, steps) : moved(entry.box, dx, dy, steps);
      this.owner.change(id, { box }, `key ${event.shiftKey} ${id}`);
    } else if (event.key === "Enter" || event.key === "F2") {
      if (event.ctrlKey || event.metaKey) return; // runs the workflow
      event.preventDefault();
      this.edit(id);
    } else if (event.key === "Escape") {
      this.owner.select(null);
      this.focus(null);
    }
  }

  sinkKey(event) {
    if (event.key !== "Enter" || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    this.owner.draw(boxBetween([0.3, 0.3], [0.7, 0.7], this.owner.steps));
  }

  fieldKey(event) {
    const done = (event.key === "Enter" && !event.shiftKey && !event.ctrlKey && !event.metaKey) || event.key === "Escape";
    if (!done || event.isComposing) return;
    event.preventDefault();
    const id = this.editing;
    this.close();
    this.focus(id);
  }

  /** Open a phrase on its box. */
  edit(id) {
    const entry = this.owner.items.find((one) => one.id === id);
    if (!entry) return;
    this.owner.select(id);
    this.editing = id;
    this.field.value = entry.phrase;
    this.field.placeholder = this.owner.words("phraseHere");
    this.field.setAttribute("aria-label", this.owner.words("phrase"));
    this.placeField();
    this.field.focus({ preventScroll: true });
    this.field.select();
  }

  type() {
    if (this.editing !== null) this.owner.change(this.editing, { phrase: oneLine(this.field.value) }, `phrase ${this.editing}`);
  }

  close() {
    if (this.editing === null) return;
    this.editing = null;
    this.placeField();
    this.owner.settle();
  }

  placeField() {
    const index = this.owner.items.findIndex(({ id }) => id === this.editing);
    if (index < 0) this.editing = null;
    this.field.hidden = index < 0;
    if (index < 0) return;
    const [x0, y0, x1] = this.owner.items[index].box;
    const width = Math.min(Math.max(x1 - x0, 0.5), 1);
    Object.assign(this.field.style, { left: percent(Math.min(x0, 1 - width)), top: percent(Math.min(y0, 0.8)), width: percent(width) });
    this.field.style.setProperty("--exl-colour", rgb(index + this.owner.offset));
  }
}

/** A phrase has no line breaks. */
export function oneLine(text) {
  return text.replace(/\s*\n\s*/g, " ");
}

/** The CSS colour of the instance at this place of the list. */
export function rgb(index) {
  return colour(index).join(" ");
}

function place(target, [x0, y0, x1, y1]) {
  Object.assign(target.style, { left: percent(x0), top: percent(y0), width: percent(x1 - x0), height: percent(y1 - y0) });
}
