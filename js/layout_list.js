/** The list below the picture: one row an instance, with its phrase, its strength and its place in the order. */

import { MOST_STRENGTH, reordered } from "./layout_state.js";
import { element, tool, write } from "./base_dom.js";
import { oneLine, rgb } from "./layout_stage.js";

/**
 * @param owner as the stage's, and `replace(items, kind)`, `shift(id, by)`, `duplicate(id)`, `remove(id)`.
 */
export class List {
  constructor(owner) {
    this.owner = owner;
    this.rows = new Map(); // id -> its parts
    this.root = element("ol", "exl-list", { "data-capture-wheel": "true" }); // the wheel scrolls it in the Vue renderer too
  }

  update() {
    const { items, selected, words, offset } = this.owner;
    this.root.setAttribute("aria-label", words("list"));
    this.root.style.setProperty("--exl-rows", String(items.length));
    const gone = new Set(this.rows.keys());
    items.forEach((entry, index) => {
      gone.delete(entry.id);
      const row = this.rows.get(entry.id) ?? this.addRow(entry.id);
      const number = index + offset + 1;
      row.root.style.setProperty("--exl-colour", rgb(index + offset));
      row.root.classList.toggle("exl-selected", entry.id === selected);
      row.grip.set({ text: String(number), label: words("grip", { number }) });
      row.copy.set({ label: words("duplicate", { number }) });
      row.remove.set({ label: words("remove", { number }) });
      write(row.phrase, entry.phrase);
      row.phrase.placeholder = words("phraseHere");
      row.phrase.title = entry.phrase;
      row.phrase.classList.toggle("exl-wordless", !entry.phrase.trim());
      row.phrase.setAttribute("aria-label", words("phraseOf", { number }));
      if (Number(row.strength.value) !== entry.strength || row.strength.value === "") write(row.strength, String(entry.strength));
      row.strength.title = words("strength");
      row.strength.setAttribute("aria-label", words("strengthOf", { number }));
      if (this.root.children[index] !== row.root) this.root.insertBefore(row.root, this.root.children[index] ?? null);
    });
    for (const id of gone) {
      this.rows.get(id).root.remove();
      this.rows.delete(id);
    }
  }

  /** Scroll the row of an item into view, without moving the page. */
  reveal(id) {
    const row = this.rows.get(id)?.root;
    if (!row) return;
    const [top, bottom] = [row.offsetTop - this.root.offsetTop, row.offsetTop - this.root.offsetTop + row.offsetHeight];
    if (top < this.root.scrollTop) this.root.scrollTop = top;
    if (bottom > this.root.scrollTop + this.root.clientHeight) this.root.scrollTop = bottom - this.root.clientHeight;
  }

  addRow(id) {
    const { owner } = this;
    const grip = tool("exl-grip", {});
    const phrase = element("input", "exb-field exl-words", { type: "text", dir: "auto" });
    const strength = element("input", "exb-field exl-strength", { type: "number", min: "0", max: String(MOST_STRENGTH), step: "0.05" });
    const copy = tool("", { icon: "copy", act: () => owner.duplicate(id) });
    const remove = tool("", { icon: "remove", act: () => owner.remove(id) });
    const parts = [grip.holder, phrase, strength, copy.holder, remove.holder];
    const root = element("li", "exl-row", { "data-row": String(id) }, parts);
    phrase.addEventListener("input", () => owner.change(id, { phrase: oneLine(phrase.value) }, `phrase ${id}`));
    strength.addEventListener("input", () => {
      const value = strength.valueAsNumber;
      if (Number.isFinite(value)) owner.change(id, { strength: Math.min(Math.max(value, 0), MOST_STRENGTH) }, `strength ${id}`);
    });
    // What was out of range shows what it became. Later, because a field also loses the focus while an update moves or removes its row.
    strength.addEventListener("blur", () => queueMicrotask(() => this.update()));
    root.addEventListener("focusin", () => owner.select(id)); // the keyboard and the selection agree
    for (const input of [phrase, strength]) {
      input.addEventListener("change", () => owner.settle());
      input.addEventListener("keydown", (event) => event.key === "Enter" && !event.isComposing && owner.settle());
    }
    grip.input.addEventListener("keydown", (event) => this.gripKey(event, id));
    grip.input.addEventListener("pointerdown", (event) => this.drag(event, id));
    const row = { root, grip, phrase, strength, copy, remove };
    this.rows.set(id, row);
    return row;
  }

  /** Keyboard focus to the row of an item. */
  focus(id) {
    this.rows.get(id)?.grip.input.focus({ preventScroll: true });
    this.reveal(id);
  }

  gripKey(event, id) {
    if (event.key === "Enter" || event.key === "F2") {
      event.preventDefault();
      this.rows.get(id).phrase.focus({ preventScroll: true });
      this.rows.get(id).phrase.select();
    }
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    this.owner.shift(id, by);
    this.focus(id);
  }

  /** Drag a row to another place. */
  drag(event, id) {
    if (event.button !== 0) return;
    const { owner } = this;
    const pointer = event.pointerId;
    owner.select(id);
    this.focus(id);
    const kind = `order ${event.timeStamp}`;
    const stop = new AbortController();
    const move = (next) => {
      if (next.pointerId !== pointer) return;
      const rects = owner.items.map((entry) => this.rows.get(entry.id).root.getBoundingClientRect());
      const from = owner.items.findIndex((entry) => entry.id === id);
      let to = rects.findIndex(({ bottom }) => next.clientY < bottom);
      if (to < 0) to = rects.length - 1;
      if (to !== from) owner.replace(reordered(owner.items, from, to), kind);
    };
    const end = (next) => {
      if (next.pointerId !== pointer) return;
      stop.abort();
      owner.settle();
    };
    // On the window: the row moves within the document, which would end a pointer capture.
    const listen = { signal: stop.signal, capture: true };
    window.addEventListener("pointermove", move, listen);
    for (const name of ["pointerup", "pointercancel"]) window.addEventListener(name, end, listen);
  }
}
