/** The box of the selected instance in numbers: left, top, width and height in pixels. */

import { element, write } from "./base_dom.js";
import { SMALLEST } from "./layout_state.js";

const SIDES = ["x", "y", "width", "height"];

/** @param owner `items`, `selected`, `size`, `words`, `change(id, values, kind)`, `settle()`. */
export class Fields {
  constructor(owner) {
    this.owner = owner;
    this.inputs = SIDES.map((side) => this.add(side));
    const labels = this.inputs.map((input) => {
      const name = element("span", "", { "aria-hidden": "true" });
      return element("label", "", {}, [name, input]);
    });
    this.root = element("div", "exl-fields", { role: "group" }, labels);
  }

  add(side) {
    const input = element("input", "exb-field", { type: "number", min: "0", step: "1" });
    input.addEventListener("input", () => this.take(side, input.valueAsNumber));
    input.addEventListener("change", () => this.owner.settle());
    input.addEventListener("blur", () => queueMicrotask(() => this.update())); // what was out of range shows what it became
    return input;
  }

  get chosen() {
    return this.owner.items.find(({ id }) => id === this.owner.selected);
  }

  take(side, pixels) {
    const { chosen, owner } = this;
    if (!chosen || !Number.isFinite(pixels)) return;
    const across = side === "x" || side === "width" ? 0 : 1;
    const value = pixels / (across ? owner.size.height : owner.size.width);
    const box = [...chosen.box];
    const length = box[across + 2] - box[across];
    if (side === "x" || side === "y") {
      box[across] = Math.min(Math.max(value, 0), 1 - length);
      box[across + 2] = box[across] + length;
    } else {
      box[across + 2] = Math.min(box[across] + Math.max(value, SMALLEST), 1);
    }
    owner.change(chosen.id, { box: box.map((edge) => Math.round(edge * 1e5) / 1e5) }, `number ${side} ${chosen.id}`);
  }

  update() {
    const { chosen, owner } = this;
    const { width, height } = owner.size;
    this.root.hidden = owner.items.length === 0;
    this.root.setAttribute("aria-label", owner.words("fields"));
    const [x0, y0, x1, y1] = chosen?.box ?? [];
    const values = chosen ? [x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height] : [];
    this.inputs.forEach((input, index) => {
      const label = owner.words(`field_${SIDES[index]}`);
      input.previousSibling.textContent = owner.words(`short_${SIDES[index]}`);
      input.setAttribute("aria-label", label);
      input.title = label;
      input.disabled = !chosen;
      write(input, chosen ? String(Math.round(values[index])) : "");
    });
  }
}
