/** The list below the picture: one row an instance, with its phrase, its strength and its place in the order. */

import { MOST_STRENGTH, reordered } from "./layout_state.js";
import { element, oneLine, rgb } from "./layout_stage.js";

const ICONS = {
  undo: "M3 6h6.5a3.5 3.5 0 0 1 0 7H6M3 6l3-3M3 6l3 3",
  redo: "M13 6H6.5a3.5 3.5 0 0 0 0 7H10M13 6l-3-3M13 6l-3 3",
  grid: "M2.5 2.5h11v11h-11zM6.2 2.5v11M9.8 2.5v11M2.5 6.2h11M2.5 9.8h11",
  image: "M2.5 3h11v10h-11zM2.5 11l3.5-3.5 3 3 2-2 2.5 2.5M10.5 6h.01",
  noImage: "M2.5 3h11v10h-11zM2 14L14 2",
  load: "M8 10.5v-8M5 5.5l3-3 3 3M2.5 10.5v3h11v-3",
  save: "M8 2.5v8M5 7.5l3 3 3-3M2.5 10.5v3h11v-3",
  text: "M6.5 2.5c-2.2 0-1.5 1.5-1.5 3S4 8 2.5 8C4 8 5 9 5 10.5S4.3 13.5 6.5 13.5M9.5 2.5c2.2 0 1.5 1.5 1.5 3S12 8 13.5 8C12 8 11 9 11 10.5s.7 3-1.5 3",
  copy: "M6 6h7.5v7.5H6zM10 6V2.5H2.5V10H6",
  remove: "M4 4l8 8M12 4l-8 8",
};

/**
 * A button: a picture or a text, and over it an <input type="button">, for the reason that layout_stage.js gives. A click with the mouse does
 * not move the keyboard's focus.
 */
export function tool(name, { icon, text, label, act }) {
  const input = element("input", "", { type: "button", value: "" });
  const holder = element("span", `exl-tool ${name}`);
  if (icon) holder.innerHTML = `<svg viewBox="0 0 16 16" aria-hidden="true"><path d="${ICONS[icon]}"/></svg>`;
  const caption = element("span", "", { "aria-hidden": "true" });
  holder.append(caption, input);
  input.addEventListener("pointerdown", (event) => event.preventDefault());
  input.addEventListener("mousedown", (event) => event.preventDefault());
  if (act) input.addEventListener("click", () => act());
  const made = { holder, input, set };
  /** Words that may change later: the label for eyes and ears, the text shown, whether it is pressed or disabled. */
  function set({ label: said, text: shown, pressed, disabled }) {
    if (said !== undefined) {
      input.setAttribute("aria-label", said);
      input.title = said;
    }
    if (shown !== undefined) caption.textContent = shown;
    if (pressed !== undefined) input.setAttribute("aria-pressed", String(pressed));
    if (disabled !== undefined) input.disabled = disabled;
  }
  set({ label, text });
  return made;
}

/**
 * @param owner as the stage's, and `replace(items, kind)`, `shift(id, by)`, `duplicate(id)`, `remove(id)`.
 */
export class List {
  constructor(owner) {
    this.owner = owner;
    this.rows = new Map(); // id -> its parts
    this.root = element("ol", "exl-list");
  }

  update() {
    const { items, selected, words } = this.owner;
    this.root.setAttribute("aria-label", words("list"));
    const gone = new Set(this.rows.keys());
    items.forEach((entry, index) => {
      gone.delete(entry.id);
      const row = this.rows.get(entry.id) ?? this.addRow(entry.id);
      const number = index + 1;
      row.root.style.setProperty("--exl-colour", rgb(index));
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
    const grip = tool("exl-grip", { act: () => owner.select(id) });
    const phrase = element("input", "exl-words", { type: "text", dir: "auto" });
    const strength = element("input", "exl-strength", { type: "number", min: "0", max: String(MOST_STRENGTH), step: "0.05" });
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
    for (const input of [phrase, strength]) {
      input.addEventListener("focus", () => owner.select(id));
      input.addEventListener("change", () => owner.settle());
      input.addEventListener("keydown", (event) => event.key === "Enter" && !event.isComposing && owner.settle());
    }
    grip.input.addEventListener("keydown", (event) => this.gripKey(event, id));
    grip.input.addEventListener("pointerdown", (event) => this.drag(event, id));
    const row = { root, grip, phrase, strength, copy, remove };
    this.rows.set(id, row);
    return row;
  }

  gripKey(event, id) {
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    this.owner.shift(id, by);
    this.rows.get(id)?.grip.input.focus({ preventScroll: true });
  }

  /** Drag a row to another place. */
  drag(event, id) {
    if (event.button !== 0) return;
    const { owner } = this;
    owner.select(id);
    const kind = `order ${event.timeStamp}`;
    const stop = new AbortController();
    const move = (next) => {
      const rects = owner.items.map((entry) => this.rows.get(entry.id).root.getBoundingClientRect());
      const from = owner.items.findIndex((entry) => entry.id === id);
      let to = rects.findIndex(({ bottom }) => next.clientY < bottom);
      if (to < 0) to = rects.length - 1;
      if (to !== from) owner.replace(reordered(owner.items, from, to), kind);
    };
    const end = () => {
      stop.abort();
      owner.settle();
    };
    // On the window: the row moves within the document, which would end a pointer capture.
    const listen = { signal: stop.signal, capture: true };
    window.addEventListener("pointermove", move, listen);
    for (const name of ["pointerup", "pointercancel"]) window.addEventListener(name, end, listen);
  }
}

/** A value into a field, without moving the caret of somebody who types there. */
function write(field, value) {
  if (field.value !== value && document.activeElement !== field) field.value = value;
}
