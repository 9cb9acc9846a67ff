/** The classes to paint with: palette, search, one button a class, and the fields of a class of the user's own. */

import { element, tool, write } from "./base_dom.js";
import { OWN, badName, isVoid, plainName } from "./painter_state.js";

/**
 * @param owner `painting`, `palettes` (names), `selected` (a class name, null for void, undefined for none), `words`, `select(name)`,
 *   `addClass(name)`, `changeClass(name, [newName, colour])`, `removeClass(name)`, `setPalette(name)`, `focus()`, `notify(key, values)`.
 */
export class Classes {
  constructor(owner) {
    this.owner = owner;
    const { words } = owner;
    this.buttons = new Map(); // plain name -> button
    this.palette = element("select", "exb-field", { "aria-label": words("palette"), title: words("palette") });
    for (const name of [OWN, ...owner.palettes]) this.palette.append(element("option", "", { value: name }, [name === OWN ? words("own") : name]));
    this.incoming = element("option", "", { value: "" });
    this.palette.addEventListener("change", () => owner.setPalette(this.palette.value));
    this.search = element("input", "exb-field exp-search", { type: "text", dir: "auto", spellcheck: "false" });
    this.search.addEventListener("input", () => this.filter());
    this.search.addEventListener("keydown", (event) => event.key === "Enter" && !event.isComposing && this.enter());
    this.addButton = tool("exp-add", { icon: "add", act: () => this.enter(true) });
    this.list = element("div", "exp-list", { role: "group", "data-capture-wheel": "true" });
    this.name = element("input", "exb-field", { type: "text", dir: "auto", maxlength: "80", "aria-label": words("className") });
    this.name.addEventListener("change", () => this.edit());
    this.colour = element("input", "", { type: "color", "aria-label": words("classColour"), title: words("classColour") });
    this.colour.addEventListener("change", () => this.edit());
    this.removeButton = tool("", { icon: "remove", label: words("removeClass"), act: () => owner.removeClass(owner.selected) });
    this.fields = element("div", "exp-edit", {}, [this.colour, this.name, this.removeButton.holder]);
    const row = element("div", "exp-pick", {}, [this.palette, this.search, this.addButton.holder]);
    this.root = element("div", "exp-classes", { role: "group", "aria-label": words("classes") }, [row, this.list, this.fields]);
  }

  update() {
    const { painting, words, selected } = this.owner;
    this.search.placeholder = words("search", { count: painting.choices.length });
    this.search.setAttribute("aria-label", this.search.placeholder);
    this.showPalette();
    const shares = painting.coverage();
    const listed = [{ name: null, colour: painting.voidColour, own: false }, ...painting.choices];
    const used = ({ name }) => name === null || shares.has(plainName(name));
    const order = [...listed.filter(used), ...listed.filter((one) => !used(one))];
    const gone = new Set(this.buttons.keys());
    let moved = false; // the selected class is at another position
    order.forEach((one, index) => {
      const key = one.name === null ? "" : plainName(one.name);
      gone.delete(key);
      const button = this.buttons.get(key) ?? this.addClass(key);
      button.choice = one;
      button.swatch.style.setProperty("--exp-colour", one.colour);
      const shown = one.name ?? words("void");
      button.set({ label: one.name === null ? words("voidHelp") : shown, text: shown, pressed: this.isSelected(one.name) });
      const share = shares.get(key);
      button.share.textContent = share ? (share < 0.001 ? "<0.1 %" : `${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %`) : "";
      if (this.list.children[index] === button.holder) return;
      this.list.insertBefore(button.holder, this.list.children[index] ?? null);
      moved ||= this.isSelected(one.name);
    });
    for (const key of gone) {
      this.buttons.get(key).holder.remove();
      this.buttons.delete(key);
    }
    const own = selected ? painting.choices.find((one) => one.own && one.name === selected) : null;
    this.fields.hidden = !own;
    if (own) {
      write(this.name, own.name);
      this.colour.value = own.colour;
    }
    this.filter();
    if (moved) this.reveal();
  }

  showPalette() {
    const { base, palette } = this.owner.painting;
    if (base) {
      this.incoming.textContent = this.owner.words("incomingPalette", { palette: base.palette });
      if (!this.incoming.isConnected) this.palette.append(this.incoming);
    } else this.incoming.remove();
    this.palette.disabled = Boolean(base);
    this.palette.value = base ? "" : palette;
  }

  isSelected(name) {
    const { selected } = this.owner;
    if (name === null || selected === null || selected === undefined) return name === selected;
    return plainName(name) === plainName(selected);
  }

  choose(name) {
    this.owner.select(name);
    if (document.activeElement === this.search) this.owner.focus();
  }

  addClass(key) {
    const button = tool("", { act: () => this.choose(button.choice.name) });
    button.swatch = element("span", "exp-swatch", { "aria-hidden": "true" });
    button.share = element("span", "exp-share", { "aria-hidden": "true" });
    button.holder.prepend(button.swatch);
    button.input.before(button.share);
    this.buttons.set(key, button);
    return button;
  }

  /** Show the classes whose names contain what is typed. */
  filter() {
    const wanted = plainName(this.search.value);
    let exact = false;
    for (const [key, button] of this.buttons) {
      button.set({ hidden: wanted !== "" && !key.includes(wanted) });
      exact ||= key === wanted;
    }
    const addable = wanted !== "" && !exact && !isVoid(wanted);
    this.addButton.set({
      hidden: !addable,
      label: addable ? this.owner.words("addClass", { name: this.search.value.trim() }) : "",
    });
  }

  /** Take the first class that is found, or add what was typed. */
  enter(add = false) {
    const typed = this.search.value.trim();
    if (!typed) return;
    const shown = [...this.list.children].find((holder) => !holder.hidden);
    const found = [...this.buttons.values()].find((button) => button.holder === shown);
    const exact = this.buttons.get(plainName(typed));
    const wrong = badName(typed);
    if (exact || (!add && found)) this.owner.select((exact ?? found).choice.name);
    else if (wrong) return this.owner.notify(wrong, {});
    else this.owner.addClass(typed);
    this.search.value = "";
    this.filter();
    this.reveal();
    this.owner.focus(); // so that the keys of the tools work
  }

  edit() {
    const { owner } = this;
    const name = this.name.value.trim();
    const wrong = badName(name) ?? (isVoid(name) ? "nameTaken" : null);
    const other = owner.painting.choice(name);
    const taken = other && other.name !== owner.selected;
    if (wrong || taken) {
      owner.notify(wrong ?? "nameTaken", { name });
      this.name.value = owner.selected;
    } else owner.changeClass(owner.selected, [name, this.colour.value]);
  }

  /** Scroll the selected class into view, without moving the page. */
  reveal() {
    const { selected } = this.owner;
    if (selected === undefined) return;
    const holder = this.buttons.get(selected === null ? "" : plainName(selected))?.holder;
    if (!holder) return;
    const top = holder.offsetTop - this.list.offsetTop;
    if (top < this.list.scrollTop || top + holder.offsetHeight > this.list.scrollTop + this.list.clientHeight) this.list.scrollTop = top - 4;
  }
}
