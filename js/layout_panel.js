/** The whole editor without the host: tools, picture, list, text view, status; its value is the text of the JSON. */

import { download, element, fileInput, stored, tool } from "./base_dom.js";
import { isolate, keepKey } from "./base_host.js";
import { Fields } from "./layout_fields.js";
import { History, item, moved, parse, reordered, toText, toUpstream } from "./layout_state.js";
import { List } from "./layout_list.js";
import { Stage } from "./layout_stage.js";
import { addStyle } from "./layout_style.js";

const GRIDS = [0, 8, 16, 32, 64]; // pixels
const GRID_KEY = "Exemplary.LayoutEditor.Grid"; // a habit of the user, not a part of the layout
const SIZE_STEP = 8; // of the node's width and height
const SIZES = [16, 8192];
const TRAINED = 10; // as many instances as the published weights were trained with

export class Panel {
  /**
   * @param words (key, values) -> text.
   * @param told called with the text after every change by the user.
   * @param settled called when a gesture or an entry is over: the time to remember the workflow.
   * @param resized (width, height): the user wants another size of the node.
   * @param disconnect called when the incoming instances were adopted.
   */
  constructor({ words, told, settled, resized, disconnect }) {
    addStyle();
    Object.assign(this, { words, told, settled, resized, disconnect });
    this.history = new History();
    this.selected = null;
    this.size = { width: 512, height: 512, known: true, linked: false };
    this.given = { items: [], complete: true, linked: false }; // the incoming instances
    this.text = "[]";
    this.caption = ""; // of an imported IFAdapter layout, for its export
    this.foreign = false; // the text is an IFAdapter layout, whose pixels follow the size
    this.error = null;
    this.textShown = false;
    this.local = null; // address of a background picture from this machine, in memory only
    this.connected = null; // of the connected image
    this.notice = null; // said once in place of the summary
    this.grid = GRIDS.includes(Number(stored(GRID_KEY, 16))) ? Number(stored(GRID_KEY, 16)) : 16;
    this.stage = new Stage(this);
    this.list = new List(this);
    this.fields = new Fields(this);
    this.build();
    this.update();
  }

  build() {
    const { words } = this;
    this.imageFile = fileInput("image/*", (file) => this.showImage(file));
    this.jsonFile = fileInput(".json,application/json", (file) => this.load(file));
    this.tools = {
      undo: tool("", { icon: "undo", label: words("undo"), act: () => this.step("undo") }),
      redo: tool("", { icon: "redo", label: words("redo"), act: () => this.step("redo") }),
      grid: tool("", { icon: "grid", act: () => this.nextGrid() }),
      image: tool("", { icon: "image", label: words("image"), act: () => this.imageFile.click() }),
      noImage: tool("", { icon: "noImage", label: words("noImage"), act: () => this.showImage(null) }),
      imageSize: tool("", { icon: "imageSize", act: () => this.takeImageSize() }),
      clear: tool("", { icon: "clear", label: words("clear"), act: () => this.clear() }),
      adopt: tool("", { icon: "adopt", act: () => this.adopt() }),
      load: tool("", { icon: "load", label: words("load"), act: () => this.jsonFile.click() }),
      save: tool("", { icon: "save", text: "JSON", label: words("save"), act: () => this.save("layout.json", toText(this.items)) }),
      saveLayout: tool("", { icon: "save", text: "IFAdapter", label: words("saveLayout"), act: () => this.saveLayout() }),
      text: tool("", { icon: "text", label: words("text"), act: () => this.showText(!this.textShown) }),
    };
    const { undo, redo, grid, image, noImage, imageSize, clear, adopt, load, save, saveLayout, text } = this.tools;
    const row = [undo, redo, clear, grid, image, noImage, imageSize, adopt].map(({ holder }) => holder);
    row.push(element("span", "exb-space"), ...[load, save, saveLayout, text].map(({ holder }) => holder));
    this.toolbar = element("div", "exb-tools", { role: "toolbar", "aria-label": words("tools") }, row);
    this.area = element("textarea", "exl-text", { spellcheck: "false", "aria-label": words("text") });
    this.area.addEventListener("input", () => this.typeText(this.area.value));
    this.area.addEventListener("change", () => this.settled());
    this.status = element("div", "exb-status exl-status", { role: "status" });
    const files = [this.imageFile, this.jsonFile];
    // "widget-expands" lets the row take the node's free height in the Vue renderer.
    this.root = element("div", "exb exl widget-expands", { role: "group", "aria-label": words("editor") });
    this.root.append(this.toolbar, this.stage.root, this.fields.root, this.list.root, this.area, this.status, ...files);
    this.guard();
  }

  guard() {
    isolate(this.root);
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.root.addEventListener("copy", (event) => this.copy(event));
    this.root.addEventListener("cut", (event) => this.copy(event) && this.remove(this.selected));
    this.root.addEventListener("paste", (event) => this.paste(event));
    this.root.addEventListener("drop", (event) => this.drop(event));
  }

  // What the stage and the list ask.

  get items() {
    return this.history.items;
  }

  /** Instances of other nodes. */
  get incoming() {
    return this.given.items;
  }

  /** How many instances come before the first item: numbers and colours are those of the result. */
  get offset() {
    return this.given.items.length;
  }

  /** One pixel of the picture. */
  get pixel() {
    return [1 / this.size.width, 1 / this.size.height];
  }

  get steps() {
    return this.pixel.map((size) => Math.min(size * this.grid, 1));
  }

  select(id) {
    if (id === this.selected) return;
    this.history.settle();
    this.selected = id;
    this.update();
    this.list.reveal(id);
  }

  draw(box) {
    const made = item(box);
    this.replace([...this.items, made]);
    this.stage.edit(made.id);
    this.list.reveal(made.id);
    this.settle();
  }

  change(id, values, kind) {
    this.replace(this.items.map((entry) => (entry.id === id ? { ...entry, ...values } : entry)), kind);
  }

  settle() {
    this.history.settle();
    this.settled();
  }

  duplicate(id) {
    const index = this.items.findIndex((entry) => entry.id === id);
    if (index < 0) return;
    const { box, phrase, strength, more } = this.items[index];
    const [dx, dy] = [box[2] < 0.95 ? 0.05 : -0.05, box[3] < 0.95 ? 0.05 : -0.05];
    const made = item(moved(box, dx, dy, this.steps), phrase, strength, more);
    this.selected = made.id;
    this.replace(this.items.toSpliced(index + 1, 0, made));
    this.stage.focus(made.id);
    this.settle();
  }

  remove(id) {
    const inList = this.list.root.contains(document.activeElement);
    const index = this.items.findIndex((entry) => entry.id === id);
    if (index < 0) return;
    const left = this.items.toSpliced(index, 1);
    this.selected = left[Math.min(index, left.length - 1)]?.id ?? null;
    this.replace(left);
    if (inList && this.selected !== null) this.list.focus(this.selected);
    else this.stage.focus(this.selected);
    this.settle();
  }

  clear() {
    if (!this.items.length) return;
    this.selected = null;
    this.replace([]);
    this.stage.focus(null);
    this.settle();
  }

  /** Make the incoming instances boxes of this node, before its own, and cut the link that brought them. */
  adopt() {
    const { items, complete } = this.given;
    if (!items.length || !complete) return;
    this.given = { items: [], complete: true, linked: false };
    this.replace([...items, ...this.items]);
    this.disconnect();
    this.settle();
  }

  /** Width and height of the image behind, in the node's steps. */
  takeImageSize() {
    const { naturalWidth, naturalHeight } = this.stage.image;
    if (!naturalWidth || this.size.linked) return;
    const rounded = (side) => Math.min(Math.max(Math.round(side / SIZE_STEP) * SIZE_STEP, SIZES[0]), SIZES[1]);
    this.resized(rounded(naturalWidth), rounded(naturalHeight));
  }

  /** One place up or down in the order. */
  shift(id, by) {
    const index = this.items.findIndex((entry) => entry.id === id);
    if (index < 0 || !this.items[index + by]) return;
    this.replace(reordered(this.items, index, index + by));
    this.settle();
  }

  /** New items by the user's hand. */
  replace(items, kind = null) {
    this.history.commit(items, kind);
    this.publish();
  }

  step(way) {
    if (this.error) return; // the text is the user's until it can be read
    this.history[way]();
    if (!this.items.some(({ id }) => id === this.selected)) this.selected = null;
    this.publish();
    this.settled();
  }

  publish() {
    this.text = toText(this.items);
    this.foreign = false;
    this.error = null;
    this.update();
    this.told(this.text);
  }

  // What the host sets.

  /** The text from outside: a loaded workflow, an undo of the graph, another script. It starts a new history. */
  setText(text) {
    if (text === this.text) return;
    this.text = text;
    const found = this.read();
    this.history.reset(found ?? []);
    if (this.error) this.textShown = true;
    this.selected = null;
    this.update();
  }

  setSize(size) {
    if (["width", "height", "known", "linked"].every((name) => size[name] === this.size[name])) return;
    this.size = size;
    if (this.foreign) this.history.reset(this.read() ?? []);
    this.update();
  }

  setConnected(address) {
    if (address === this.connected) return;
    this.connected = address;
    this.update();
  }

  setIncoming(given) {
    const plain = ({ items, complete, linked }) => JSON.stringify([items.map(({ box, phrase, strength }) => [box, phrase, strength]), complete, linked]);
    if (plain(given) === plain(this.given)) return;
    this.given = given;
    this.update();
  }

  /** The items of the text, or undefined: what cannot be understood stays as it is, for the user to mend. */
  read() {
    const found = parse(this.text, this.size.width, this.size.height);
    this.error = found.error ?? null;
    this.foreign = !found.error && !this.text.trim().startsWith("[") && this.text.trim() !== "";
    this.caption = found.caption || this.caption;
    return found.items;
  }

  typeText(text) {
    this.text = text;
    const found = this.read();
    if (found) this.history.commit(found, "text");
    this.update();
    this.told(text);
  }

  showText(shown) {
    this.textShown = shown || this.error !== null;
    this.update();
    (this.textShown ? this.area : this.stage.sink).focus({ preventScroll: true });
  }

  // Files and the clipboard.

  /** A background from this machine; null takes it away. It is never saved or sent. */
  showImage(file) {
    if (this.local) URL.revokeObjectURL(this.local);
    this.local = file && URL.createObjectURL(file);
    this.update();
  }

  async load(file) {
    this.take(await file.text());
  }

  /** JSON from a file or the clipboard in place of all boxes; undo brings them back. Says what is wrong and changes nothing otherwise. */
  take(text, add = false) {
    const found = parse(text, this.size.width, this.size.height);
    this.notice = found.error ? this.words("notTaken", { reason: this.words(...found.error) }) : null;
    if (!found.error) {
      this.caption = found.caption || this.caption;
      if (found.caption) this.notice = this.words("caption", { caption: found.caption });
      this.textShown = false;
      this.selected = found.items[0]?.id ?? null;
      this.replace(add ? [...this.items, ...found.items] : found.items);
      this.settle();
    } else {
      this.update();
    }
    this.notice = null;
  }

  saveLayout() {
    this.save("ifadapter_layout.json", toUpstream(this.items, this.caption, this.size.width, this.size.height));
  }

  save(name, text) {
    download(name, [text], "application/json");
  }

  drop(event) {
    const file = event.dataTransfer?.files[0];
    if (!file) return;
    event.preventDefault();
    event.stopPropagation();
    if (file.type.startsWith("image/")) this.showImage(file);
    else this.load(file);
  }

  copy(event) {
    const chosen = this.items.find(({ id }) => id === this.selected);
    event.stopPropagation();
    if (!chosen || !this.stage.root.contains(event.target) || event.target === this.stage.field) return false;
    event.clipboardData.setData("text/plain", toText([chosen]));
    event.preventDefault();
    return true;
  }

  paste(event) {
    event.stopPropagation();
    if (!this.stage.root.contains(event.target) || event.target === this.stage.field) return;
    event.preventDefault();
    const picture = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
    if (picture) this.showImage(picture);
    else this.take(event.clipboardData.getData("text/plain"), true);
  }

  nextGrid() {
    this.grid = GRIDS[(GRIDS.indexOf(this.grid) + 1) % GRIDS.length];
    stored(GRID_KEY, 16, this.grid);
    this.update();
  }

  // Keys. In a field they are the field's own.

  key(event) {
    const control = event.ctrlKey || event.metaKey;
    const typing = event.target.matches("textarea, [type=text], [type=number]");
    const letter = event.key.toLowerCase();
    let done = true;
    if (typing) done = false;
    else if (control && letter === "z") this.step(event.shiftKey ? "redo" : "undo");
    else if (control && letter === "y") this.step("redo");
    else if (control && letter === "a") done = true; // nothing here is text to select
    else if (this.stage.root.contains(event.target) || this.list.root.contains(event.target)) done = this.boxKey(event, control);
    else done = false;
    keepKey(event, done);
  }

  boxKey(event, control) {
    const id = this.selected;
    if (id === null) return false;
    if (event.key === "Delete" || event.key === "Backspace") this.remove(id);
    else if (control && event.key.toLowerCase() === "d") this.duplicate(id);
    else if (event.altKey && event.key === "ArrowUp") this.shift(id, -1);
    else if (event.altKey && event.key === "ArrowDown") this.shift(id, 1);
    else return false;
    return true;
  }

  // The page.

  update() {
    const focused = this.root.contains(document.activeElement) ? document.activeElement : null;
    const { undo, redo, grid, noImage, imageSize, clear, adopt, text } = this.tools;
    undo.set({ disabled: this.error !== null || !this.history.canUndo });
    redo.set({ disabled: this.error !== null || !this.history.canRedo });
    const gridLabel = this.grid ? this.words("grid", { pixels: this.grid }) : this.words("noGrid");
    grid.set({ text: this.grid ? String(this.grid) : "", label: gridLabel, pressed: this.grid > 0 });
    noImage.holder.hidden = !this.local;
    clear.set({ disabled: this.items.length === 0 });
    imageSize.set({
      hidden: !(this.local ?? this.connected),
      disabled: this.size.linked,
      label: this.words(this.size.linked ? "imageSizeLinked" : "imageSize"),
    });
    const { items: given, complete } = this.given;
    adopt.set({
      hidden: !given.length,
      disabled: !complete,
      text: String(given.length),
      label: this.words(complete ? "adopt" : "adoptUnknown", { count: given.length }),
    });
    text.set({ pressed: this.textShown, disabled: this.error !== null });
    this.stage.root.hidden = this.list.root.hidden = this.textShown;
    this.area.hidden = !this.textShown;
    if (this.area.value !== this.text) this.area.value = this.text;
    this.stage.update({ ...this.size, background: this.local ?? this.connected });
    this.list.update();
    this.fields.update();
    this.fields.root.hidden ||= this.textShown;
    this.status.classList.toggle("exb-error", this.error !== null);
    const said = this.error ? this.words(...this.error) : (this.notice ?? this.summary());
    if (this.status.textContent !== said) this.status.textContent = said;
    // A focused element that went away or moved in the document must not leave the keyboard to the graph.
    if (focused && document.activeElement !== focused) {
      const there = focused.isConnected && !focused.disabled && focused.offsetParent !== null;
      there ? focused.focus({ preventScroll: true }) : this.stage.focus(this.selected);
    }
  }

  summary() {
    const { items, size, words, given } = this;
    if (!size.known) return words("sizeUnknown", { ...size });
    if (!given.complete) return words("incomingUnknown");
    const wordless = items.filter(({ phrase }) => !phrase.trim()).length;
    if (wordless) return words("wordless", { count: wordless });
    if (items.length > TRAINED) return words("many", { count: items.length, most: TRAINED });
    if (given.items.length) return words("summaryIncoming", { count: items.length, given: given.items.length, ...size });
    return words("summary", { count: items.length, ...size });
  }

  /** The node is gone. */
  destroy() {
    if (this.local) URL.revokeObjectURL(this.local);
    this.local = null;
    this.stage.destroy();
  }
}
