/** The whole painter without the host: tools, picture, classes, status; its value is the text that the node reads. */

import { download, element, fileInput, stored, tool } from "./base_dom.js";
import { isolate, keepKey } from "./base_host.js";
import { Classes } from "./painter_classes.js";
import { UNPAINTED } from "./painter_raster.js";
import { Painting, parsePainting, readBase } from "./painter_state.js";
import { Stage } from "./painter_stage.js";
import { addStyle } from "./painter_style.js";

const TOOLS = ["brush", "erase", "fill", "polygon", "rectangle", "pick"];
const SIZE_KEY = "Exemplary.Painter.Brush"; // a habit of the user, not a part of the painting
const SIZES = [1, 1024]; // of the brush
const STEPS = 100; // of the brush's slider
const OVER_IMAGE = 0.6; // opacity of the map when an image appears behind it
const SIZE_STEP = 8; // of the node's width and height
const SIDES = [16, 8192];

export class Panel {
  /**
   * @param palettes name -> {void, classes}
   * @param words (key, values) -> text
   * @param told called with the text after every change by the user
   * @param settled called when a change is over: the time to remember the workflow
   * @param resized (width, height): the user wants another size of the node
   */
  constructor({ palettes, words, told, settled, resized }) {
    addStyle();
    Object.assign(this, { words, told, settled, resized });
    this.palettes = Object.keys(palettes);
    this.data = palettes;
    this.painting = new Painting(palettes);
    this.tool = "brush";
    this.painter = "brush"; // the tool to go back to after picking
    this.diameter = Math.min(Math.max(Number(stored(SIZE_KEY, 32)) || 32, SIZES[0]), SIZES[1]);
    this.selected = undefined;
    this.text = "";
    this.ready = true; // false while a text is read, or where it could not be
    this.error = null;
    this.notice = null;
    this.linked = false; // a map is connected
    this.size = { width: 512, height: 512, known: true, linked: false };
    this.local = null; // address of a background image from this machine, in memory only
    this.connected = null; // of the connected image
    this.opacity = 1;
    this.stage = new Stage(this);
    this.classes = new Classes(this);
    this.build();
    this.refresh();
  }

  build() {
    const { words } = this;
    this.imageFile = fileInput("image/*", (file) => this.showImage(file));
    this.tools = Object.fromEntries(TOOLS.map((name) => [name, tool("", { icon: name, label: words(name), act: () => this.setTool(name) })]));
    this.buttons = {
      undo: tool("", { icon: "undo", label: words("undo"), act: () => this.step("undo") }),
      redo: tool("", { icon: "redo", label: words("redo"), act: () => this.step("redo") }),
      clear: tool("", { icon: "clear", label: words("clear"), act: () => this.clear() }),
      fit: tool("", { icon: "fit", label: words("fit"), act: () => this.stage.fit() }),
      image: tool("", { icon: "image", label: words("image"), act: () => this.imageFile.click() }),
      noImage: tool("", { icon: "noImage", label: words("noImage"), act: () => this.showImage(null) }),
      imageSize: tool("", { icon: "imageSize", act: () => this.takeImageSize() }),
      adopt: tool("", { icon: "adopt", label: words("adopt"), act: () => this.adopt() }),
      save: tool("", { icon: "save", text: "PNG", label: words("save"), act: () => this.save() }),
    };
    this.brush = this.range("brushSize", (value) => this.resizeBrush(SIZES[0] * (SIZES[1] / SIZES[0]) ** (value / STEPS) / this.diameter));
    this.cover = this.range("opacity", (value) => this.setOpacity(value / STEPS));
    const { undo, redo, clear, fit, image, noImage, imageSize, adopt, save } = Object.fromEntries(
      Object.entries(this.buttons).map(([name, { holder }]) => [name, holder]),
    );
    const row = [...TOOLS.map((name) => this.tools[name].holder), this.brush.root, undo, redo, clear];
    row.push(element("span", "exb-space"), fit, image, noImage, imageSize, this.cover.root, adopt, save);
    this.toolbar = element("div", "exb-tools", { role: "toolbar", "aria-label": words("tools") }, row);
    this.status = element("div", "exb-status", { role: "status" });
    this.body = element("div", "exp-body", {}, [this.stage.root, this.classes.root]);
    // "widget-expands" lets the row take the node's free height in the Vue renderer.
    this.root = element("div", "exb exp widget-expands", { role: "group", "aria-label": words("editor") });
    this.root.append(this.toolbar, this.body, this.status, this.imageFile);
    isolate(this.root);
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.root.addEventListener("drop", (event) => this.drop(event));
    for (const name of ["copy", "cut", "paste"]) this.root.addEventListener(name, (event) => event.stopPropagation());
  }

  range(name, act) {
    const label = this.words(name);
    const input = element("input", "", { type: "range", min: "0", max: String(STEPS), "aria-label": label, title: label });
    input.addEventListener("input", () => act(input.valueAsNumber));
    const output = element("output", "");
    return { root: element("span", "exp-range", { title: label }, [input, output]), input, output };
  }

  // What the stage and the list of classes ask.

  get radius() {
    return this.diameter / 2;
  }

  get hintText() {
    if (this.error || !this.ready) return "";
    if (this.linked && !this.painting.base) return this.words("runFirst");
    return this.painting.past.length || this.painting.base || this.painting.stored ? "" : this.words("hint");
  }

  /** Begin a step and return the label to paint with; null: nothing can be painted. */
  label(erase) {
    this.notice = null;
    if (!erase && this.selected === undefined) {
      this.notify("chooseClass", {});
      return null;
    }
    this.painting.begin();
    const label = erase ? UNPAINTED : this.painting.labelOf(this.selected);
    if (label === null) {
      this.painting.cancel();
      this.notify("tooMany", {});
    }
    return label;
  }

  /** End a step: the rectangle that changed, or undefined to take it back. */
  finish(area) {
    if (area === undefined) {
      this.painting.cancel();
      this.stage.redraw();
      return;
    }
    this.painting.commit(area);
    this.publish();
  }

  pick(point) {
    const name = this.painting.nameAt(point);
    if (name !== undefined) this.select(name);
    if (this.tool === "pick") this.setTool(this.painter);
  }

  resizeBrush(factor) {
    let wanted = Math.min(Math.max(Math.round(this.diameter * factor), SIZES[0]), SIZES[1]);
    if (wanted === this.diameter && factor > 1) wanted++;
    this.diameter = Math.min(wanted, SIZES[1]);
    stored(SIZE_KEY, 32, this.diameter);
    this.showTools();
    this.stage.outline();
  }

  setTool(name) {
    this.stage.abandon();
    if (name !== "pick") this.painter = name;
    this.tool = name;
    this.notice = null;
    this.showTools();
    this.stage.outline();
    this.viewed();
  }

  viewed() {
    if (this.status) this.say();
  }

  select(name) {
    this.selected = name;
    this.notice = null;
    if (this.tool === "erase") this.setTool("brush");
    this.classes.update();
    this.classes.reveal();
    this.say();
  }

  /** Give the keyboard to the picture. */
  focus() {
    this.stage.sink.focus({ preventScroll: true });
  }

  addClass(name) {
    this.lists(() => {
      const added = this.painting.add(name);
      if (added === null) this.notify("tooMany", {});
      else this.selected = added;
    });
  }

  changeClass(name, [newName, colour]) {
    this.lists(() => {
      this.painting.change(name, [newName, colour]);
      this.selected = newName;
    });
  }

  removeClass(name) {
    const { width, height } = this.painting;
    this.painting.begin();
    this.painting.remove(name);
    this.painting.commit([0, 0, width, height]);
    this.selected = undefined;
    this.show();
    this.focus();
  }

  setPalette(name) {
    this.lists(() => {
      this.painting.palette = name;
      this.painting.relook();
    });
    if (this.painting.choice(this.selected ?? "") === undefined) this.select(this.firstClass());
  }

  /** A step that changes no pixel. */
  lists(act) {
    this.painting.begin();
    act();
    this.painting.commit(null);
    this.show();
  }

  adopt() {
    const { width, height } = this.painting;
    this.painting.begin();
    this.painting.adopt();
    this.painting.commit([0, 0, width, height]);
    this.notify("adopted", {});
    this.show();
  }

  clear() {
    const { width, height } = this.painting;
    if (this.error) {
      this.painting.clear(this.painting.palette);
      this.error = null;
      this.ready = true;
    } else {
      this.painting.begin();
      this.painting.raster.labels.fill(UNPAINTED);
      this.painting.commit([0, 0, width, height]);
    }
    this.show();
  }

  step(way) {
    this.stage.abandon();
    if (this.ready && this.painting[way]()) this.show();
  }

  /** Publish, and draw everything anew. */
  show() {
    this.publish();
    this.stage.redraw();
  }

  publish() {
    this.text = this.painting.toText();
    this.refresh();
    this.told(this.text);
    this.settled();
  }

  firstClass() {
    return this.painting.choices[0]?.name;
  }

  notify(key, values) {
    this.notice = this.words(key, values);
    this.say();
  }

  // What the host sets.

  /** The text from outside: a loaded workflow, an undo of the graph, another script. It starts a new history. */
  setText(text) {
    if (text === this.text) return this.reading;
    this.text = text;
    this.stage.abandon();
    this.ready = false;
    this.reading = parsePainting(text, this.data).then((found) => {
      if (this.text !== text) return; // another one came in the meantime
      this.error = found.error ?? null;
      this.ready = !found.error;
      if (found.error) this.painting.clear();
      else this.painting.take(found);
      if (this.selected === undefined || (this.selected && !this.painting.choice(this.selected))) this.selected = this.firstClass();
      this.refresh();
      this.stage.redraw();
    });
    return this.reading;
  }

  setSize(size) {
    if (["width", "height", "known", "linked"].every((name) => size[name] === this.size[name])) return;
    this.size = size;
    if (this.painting.setSize(size.width, size.height)) this.stage.redraw();
    this.refresh();
  }

  setLinked(linked) {
    if (linked === this.linked) return;
    this.linked = linked;
    this.notice = null;
    if (!linked && this.painting.base) {
      this.painting.setBase(null);
      this.stage.redraw();
    }
    this.refresh();
  }

  /** The incoming map, as the node described it. */
  async setIncoming(text) {
    const base = text ? await readBase(text) : null;
    if (!this.linked && base) return;
    this.painting.setBase(base);
    if (this.selected === undefined || (this.selected && !this.painting.choice(this.selected))) this.selected = this.firstClass();
    this.refresh();
    this.stage.redraw();
  }

  setConnected(address) {
    if (address === this.connected) return;
    this.connected = address;
    this.showBackground();
  }

  // Files.

  /** A background from this machine; null takes it away. It is never saved or sent. */
  showImage(file) {
    if (this.local) URL.revokeObjectURL(this.local);
    this.local = file && URL.createObjectURL(file);
    this.showBackground();
  }

  showBackground() {
    const address = this.local ?? this.connected;
    if (address && this.stage.image.hidden && this.opacity === 1) this.opacity = OVER_IMAGE;
    this.stage.setImage(address);
    this.refresh();
  }

  setOpacity(value) {
    this.opacity = value;
    this.showTools();
  }

  takeImageSize() {
    const { naturalWidth, naturalHeight } = this.stage.image;
    if (!naturalWidth || this.size.linked || this.linked) return;
    const rounded = (side) => Math.min(Math.max(Math.round(side / SIZE_STEP) * SIZE_STEP, SIDES[0]), SIDES[1]);
    this.resized(rounded(naturalWidth), rounded(naturalHeight));
  }

  drop(event) {
    const file = event.dataTransfer?.files[0];
    if (!file) return;
    event.preventDefault();
    event.stopPropagation();
    if (file.type.startsWith("image/")) this.showImage(file);
  }

  save() {
    download("semantic_map.png", [this.painting.toPng()], "image/png");
  }

  // Keys. In a field they are the field's own.

  key(event) {
    const control = event.ctrlKey || event.metaKey;
    const typing = event.target.matches("[type=text], [type=color], select");
    const letter = event.key.toLowerCase();
    let done = true;
    if (typing) done = false;
    else if (control && letter === "z") this.step(event.shiftKey ? "redo" : "undo");
    else if (control && letter === "y") this.step("redo");
    else if (control && letter === "a") done = true; // nothing here is text to select
    else if (event.target === this.stage.sink) done = this.stage.key(event);
    else done = false;
    keepKey(event, done);
  }

  // The page.

  refresh() {
    this.showTools();
    this.classes.update();
    this.say();
    this.stage.outline();
  }

  showTools() {
    if (!this.tools) return;
    const { painting, words } = this;
    for (const name of TOOLS) this.tools[name].set({ pressed: name === this.tool });
    const at = (Math.log(this.diameter / SIZES[0]) / Math.log(SIZES[1] / SIZES[0])) * STEPS;
    this.brush.input.value = String(at);
    this.brush.output.textContent = String(this.diameter);
    this.cover.input.value = String(this.opacity * STEPS);
    this.cover.output.textContent = `${Math.round(this.opacity * 100)} %`;
    this.stage.root.style.setProperty("--exp-opacity", String(this.opacity));
    const { undo, redo, clear, noImage, imageSize, adopt } = this.buttons;
    undo.set({ disabled: !this.ready || !painting.past.length });
    redo.set({ disabled: !this.ready || !painting.future.length });
    clear.set({ disabled: !this.error && this.text === "" });
    const behind = Boolean(this.local ?? this.connected);
    this.cover.root.hidden = !behind;
    noImage.set({ hidden: !this.local });
    const fixed = this.size.linked || this.linked;
    imageSize.set({ hidden: !behind, disabled: fixed, label: words(fixed ? "imageSizeLinked" : "imageSize") });
    adopt.set({ hidden: !painting.base });
  }

  say() {
    const text = this.error ? this.words("unreadable", { reason: this.words(...this.error) }) : (this.notice ?? this.summary());
    this.status.classList.toggle("exb-error", this.error !== null);
    if (this.status.textContent !== text) this.status.textContent = text;
  }

  summary() {
    const { painting, stage, words } = this;
    if (!this.size.known && !painting.base) return words("sizeUnknown", { ...this.size });
    if (this.tool === "polygon") return words(stage.corners.length ? "polygonMore" : "polygonFirst");
    const zoom = Math.round(stage.scale * 100);
    const at = stage.cursor?.map((value) => Math.floor(value));
    const inside = at && at[0] >= 0 && at[1] >= 0 && at[0] < painting.width && at[1] < painting.height;
    const size = { width: painting.width, height: painting.height, zoom };
    if (!inside) return words("summary", size);
    const name = painting.nameAt(at);
    return words("under", { ...size, x: at[0], y: at[1], name: name === undefined ? words("nothing") : (name ?? words("void")) });
  }

  /** The node is gone. */
  destroy() {
    if (this.local) URL.revokeObjectURL(this.local);
    this.local = null;
    this.stage.destroy();
  }
}

