/**
 * What a painting is, without a page: labels, classes, palette, the incoming map below, undo and redo, and the text that the node reads
 * (py/semantic/painting.py).
 */

import { decodePng, encodePng, fromDataUrl, toDataUrl } from "./painter_png.js";
import { ERASED, Raster, UNPAINTED } from "./painter_raster.js";

export const OWN = "own classes";
const MOST_CLASSES = 254;
const MOST_STEPS = 200;
const MOST_BYTES = 96 * 2 ** 20; // of undo
const COLOUR = /^#?[0-9a-f]{6}$/i;
const VOID_NAMES = ["void", "unlabeled", "unlabelled", "ignore"];

/** Names are the same class without regard to case, spaces, `_` and `-`. */
export const plainName = (name) => name.trim().toLowerCase().replace(/[\s_-]+/g, " ");

export const toRgb = (colour) => {
  const digits = colour.replace("#", "");
  return [0, 2, 4].map((at) => parseInt(digits.slice(at, at + 2), 16));
};

/** A colour that stands apart from these, of the rule by which data sets number colours. */
export function freeColour(taken) {
  const used = taken.map(toRgb);
  const distance = (colour) => Math.min(...used.map((other) => other.reduce((sum, value, at) => sum + (value - colour[at]) ** 2, 0)), Infinity);
  let best = null;
  for (let index = 1; index < 512; index++) {
    const colour = [0, 1, 2].map((channel) => [0, 1, 2].reduce((sum, bit) => sum | (((index >> (bit * 3 + channel)) & 1) << (7 - bit)), 0));
    const apart = distance(colour);
    if (!best || apart > best.apart) best = { apart, colour };
    if (apart >= 48 ** 2) break;
  }
  return `#${best.colour.map((value) => value.toString(16).padStart(2, "0")).join("")}`;
}

/** Why a name cannot be one, as a key of the locales, or null. */
export function badName(name) {
  const trimmed = name.trim();
  if (!trimmed || trimmed.length > 80) return "nameLength";
  return /,|\n|->/.test(trimmed) ? "nameSigns" : null;
}

export class Painting {
  /** @param palettes name -> {void, classes: [[name, colour], ...]} */
  constructor(palettes) {
    this.palettes = palettes;
    this.base = null; // the incoming map: {palette, void, classes, width, height, labels}
    this.wanted = { width: 512, height: 512 }; // of the node
    this.clear();
  }

  clear(palette = OWN) {
    this.palette = palette;
    this.classes = []; // [name, colour] of the labels 0, 1, ...
    this.stored = null; // the raster as it was read; it is resized anew for every size until somebody paints
    this.forget();
    this.fit();
  }

  forget() {
    this.past = [];
    this.future = [];
    this.bytes = 0;
    this.before = null;
  }

  get width() {
    return this.raster.width;
  }

  get height() {
    return this.raster.height;
  }

  // Size and incoming map.

  setSize(width, height) {
    if (this.wanted.width === width && this.wanted.height === height) return false;
    this.wanted = { width, height };
    return this.fit();
  }

  setBase(base) {
    this.base = base;
    this.fit();
    this.relook();
  }

  /** Bring the raster to the size that counts: the incoming map's, else the node's. */
  fit() {
    const { width, height } = this.base ?? this.wanted;
    if (this.raster?.width === width && this.raster.height === height && this.stored !== this.raster) {
      this.relook();
      return false;
    }
    this.stored ??= this.raster && this.isPainted() ? this.raster : null;
    this.raster = this.stored ? this.stored.resized(width, height) : new Raster(width, height);
    this.forget(); // steps of another size cannot be taken back
    this.relook();
    return true;
  }

  isPainted() {
    return this.raster.labels.some((label) => label !== UNPAINTED);
  }

  // Classes.

  /** The classes that the palette gives: the incoming map's, or those of the chosen one. [name, colour] each. */
  get given() {
    return this.base?.classes ?? this.palettes[this.palette]?.classes ?? [];
  }

  /** All classes to choose from: the palette's, then those that the user added. `own`: it can be renamed. */
  get choices() {
    const names = new Set(this.given.map(([name]) => plainName(name)));
    const own = this.classes.filter(([name]) => !names.has(plainName(name)));
    return [...this.given.map(([name, colour]) => ({ name, colour, own: false })), ...own.map(([name, colour]) => ({ name, colour, own: true }))];
  }

  choice(name) {
    return this.choices.find((one) => plainName(one.name) === plainName(name));
  }

  /** The label of a class, added to the painting's list if it is new there; null if the list is full. */
  labelOf(name) {
    if (name === null) return ERASED;
    const plain = plainName(name);
    const found = this.classes.findIndex(([other]) => plainName(other) === plain);
    if (found >= 0) return found;
    const choice = this.choice(name);
    if (!choice || this.classes.length >= MOST_CLASSES) return null;
    this.classes = [...this.classes, [choice.name, choice.colour]];
    this.relook();
    return this.classes.length - 1;
  }

  /** Add a class of the user's own; returns its name. Call between `begin` and `commit`. */
  add(name, colour) {
    const known = this.choice(name);
    if (known) return known.name;
    if (this.classes.length >= MOST_CLASSES) return null;
    const taken = [...this.choices.map((one) => one.colour), this.voidColour];
    this.classes = [...this.classes, [name.trim(), colour ?? freeColour(taken)]];
    this.relook();
    return name.trim();
  }

  change(name, [newName, colour]) {
    this.classes = this.classes.map((entry) => (entry[0] === name ? [newName, colour] : entry));
    this.relook();
  }

  /** Take a class away; its pixels become unpainted. */
  remove(name) {
    const gone = this.classes.findIndex((entry) => entry[0] === name);
    if (gone < 0) return;
    const { labels } = this.raster;
    for (let at = 0; at < labels.length; at++) {
      if (labels[at] === gone) labels[at] = UNPAINTED;
      else if (labels[at] > gone && labels[at] < ERASED) labels[at]--;
    }
    this.classes = this.classes.toSpliced(gone, 1);
    this.relook();
  }

  // What is seen.

  get voidColour() {
    return this.base?.void ?? this.palettes[this.palette]?.void ?? "#000000";
  }

  /** Make the tables anew by which pixels get their colours. */
  relook() {
    const word = (colour, alpha = 255) => {
      const [red, green, blue] = toRgb(colour);
      return ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
    };
    this.looks = new Uint32Array(256).fill(word(this.voidColour));
    this.classes.forEach(([name, colour], label) => (this.looks[label] = word(this.choice(name)?.colour ?? colour)));
    this.looks[UNPAINTED] = 0; // transparent: nothing is there
    this.below = new Uint32Array(256).fill(word(this.voidColour));
    this.base?.classes.forEach(([, colour], label) => (this.below[label] = word(colour)));
  }

  /** RGBA of a rectangle, for a canvas. */
  pixels([left, top, right, bottom]) {
    const out = new Uint32Array((right - left) * (bottom - top));
    const { labels, width } = this.raster;
    const under = this.base?.labels;
    let to = 0;
    for (let y = top; y < bottom; y++) {
      for (let at = y * width + left, end = y * width + right; at < end; at++) {
        const label = labels[at];
        out[to++] = label === UNPAINTED && under ? this.below[under[at]] : this.looks[label];
      }
    }
    return new Uint8ClampedArray(out.buffer);
  }

  /** A number that is the same for pixels that look to be of one class. */
  seen = (at) => {
    const label = this.raster.labels[at];
    if (label !== UNPAINTED) return label === ERASED ? 512 : (this.twins?.[label] ?? label);
    return this.base ? (this.base.labels[at] === 255 ? 512 : 256 + this.base.labels[at]) : UNPAINTED;
  };

  /** Let painted and incoming pixels of one class count as one area. */
  pair() {
    if (!this.base) return (this.twins = null);
    const names = new Map(this.base.classes.map(([name], label) => [plainName(name), label]));
    this.twins = this.classes.map(([name], label) => (names.has(plainName(name)) ? 256 + names.get(plainName(name)) : label));
  }

  /** The class at a point: its name, null for void, undefined for nothing. */
  nameAt([x, y]) {
    const [column, row] = [Math.floor(x), Math.floor(y)];
    if (column < 0 || row < 0 || column >= this.width || row >= this.height) return undefined;
    const at = row * this.width + column;
    const label = this.raster.labels[at];
    if (label === ERASED) return null;
    if (label !== UNPAINTED) return this.classes[label]?.[0];
    if (!this.base) return undefined;
    return this.base.labels[at] === 255 ? null : this.base.classes[this.base.labels[at]]?.[0];
  }

  /** Share of the image that each class covers: name -> 0..1; void and unpainted pixels are not listed. */
  coverage() {
    const own = new Float64Array(256);
    const under = new Float64Array(256);
    const { labels } = this.raster;
    for (let at = 0; at < labels.length; at++) {
      if (labels[at] === UNPAINTED && this.base) under[this.base.labels[at]]++;
      else own[labels[at]]++;
    }
    const found = new Map();
    const add = (name, count) => count && found.set(plainName(name), (found.get(plainName(name)) ?? 0) + count / labels.length);
    this.classes.forEach(([name], label) => add(name, own[label]));
    this.base?.classes.forEach(([name], label) => add(name, under[label]));
    return found;
  }

  /** Paint what the incoming map shows, so that it stays without the link. */
  adopt() {
    if (!this.base) return;
    const table = new Map();
    const { labels } = this.raster;
    for (let at = 0; at < labels.length; at++) {
      if (labels[at] !== UNPAINTED) continue;
      const below = this.base.labels[at];
      if (!table.has(below)) table.set(below, below === 255 ? ERASED : (this.labelOf(this.base.classes[below][0]) ?? UNPAINTED));
      labels[at] = table.get(below);
    }
    if (this.base.palette in this.palettes) this.palette = this.base.palette;
    this.relook();
  }

  // Undo. A step begins before the first pixel changes and is committed with the rectangle that changed, or null for the classes only.

  begin() {
    this.before = { labels: this.raster.labels.slice(), classes: this.classes, palette: this.palette };
  }

  /** Take back what was done since `begin`. */
  cancel() {
    if (!this.before) return;
    this.raster.labels.set(this.before.labels);
    this.classes = this.before.classes;
    this.palette = this.before.palette;
    this.before = null;
    this.relook();
  }

  commit(area) {
    const { before } = this;
    this.before = null;
    if (!before) return;
    const old = area ? new Raster(this.width, this.height, before.labels).read(area) : null;
    const now = area ? this.raster.read(area) : null;
    this.past.push({ area, old, now, from: [before.classes, before.palette], to: [this.classes, this.palette] });
    this.future = [];
    this.stored = null;
    this.bytes += (old?.length ?? 0) * 2;
    while (this.past.length > MOST_STEPS || (this.bytes > MOST_BYTES && this.past.length > 1)) this.bytes -= (this.past.shift().old?.length ?? 0) * 2;
  }

  undo() {
    return this.step(this.past, this.future, "old", "from");
  }

  redo() {
    return this.step(this.future, this.past, "now", "to");
  }

  /** Returns whether there was a step. */
  step(source, target, pixels, lists) {
    const step = source.pop();
    if (!step) return false;
    target.push(step);
    if (step.area) this.raster.put(step.area, step[pixels]);
    [this.classes, this.palette] = step[lists];
    this.relook();
    return true;
  }

  // Text.

  /** What the node reads. */
  toText() {
    if (!this.classes.length && this.palette === OWN && !this.isPainted()) return "";
    const classes = this.classes.map(([name, colour]) => ({ name, color: this.choice(name)?.colour ?? colour }));
    const labels = this.isPainted() ? toDataUrl(encodePng(this.raster.labels, this.width, this.height)) : "";
    return JSON.stringify({ palette: this.palette, classes, labels });
  }

  /** A PNG file of what is seen, in the classes' colours. */
  toPng() {
    const { classes, labels } = this.merged();
    const colours = Array.from({ length: 256 }, (_, label) => toRgb(classes[label]?.[1] ?? this.voidColour));
    return encodePng(labels, this.width, this.height, colours);
  }

  merged() {
    const whole = new Painting(this.palettes);
    Object.assign(whole, { base: this.base, palette: this.palette, classes: this.classes });
    whole.raster = new Raster(this.width, this.height, this.raster.labels.slice());
    whole.adopt();
    return { classes: whole.classes, labels: whole.raster.labels };
  }

  take({ palette, classes, raster }) {
    this.palette = palette;
    this.classes = classes;
    this.stored = raster;
    this.raster = null;
    this.fit();
  }
}

/**
 * Read a painting's text.
 *
 * @returns {Promise<{palette: string, classes: string[][], raster: Raster | null} | {error: [string, object]}>} never rejects
 */
export async function parsePainting(text, palettes) {
  if (!text.trim()) return { palette: OWN, classes: [], raster: null };
  let data;
  try {
    data = JSON.parse(text);
  } catch (error) {
    return { error: ["notJson", { reason: error.message }] };
  }
  if (typeof data !== "object" || data === null || Array.isArray(data)) return { error: ["notAPainting", {}] };
  const palette = data.palette || OWN;
  if (palette !== OWN && !(typeof palette === "string" && Object.hasOwn(palettes, palette))) return { error: ["badPalette", { palette: String(palette) }] };
  const classes = readClasses(data.classes || []);
  if (!classes) return { error: ["badClasses", {}] };
  if (!data.labels) return { palette, classes, raster: null };
  try {
    const { width, height, labels } = await decodePng(fromDataUrl(data.labels));
    if (labels.some((label) => label >= classes.length && label < ERASED)) return { error: ["badLabels", {}] };
    return { palette, classes, raster: new Raster(width, height, labels) };
  } catch (error) {
    return { error: ["badImage", { reason: error.message }] };
  }
}

function readClasses(entries) {
  if (!Array.isArray(entries) || entries.length > MOST_CLASSES) return null;
  const fine = entries.every((entry) => typeof entry?.name === "string" && typeof entry.color === "string" && COLOUR.test(entry.color.trim()));
  return fine ? entries.map(({ name, color }) => [name.trim(), `#${color.trim().replace("#", "").toLowerCase()}`]) : null;
}

/** The incoming map that the node described when it last ran, or null. */
export async function readBase(text) {
  try {
    const { palette, void: nothing, classes, labels } = JSON.parse(text);
    const image = await decodePng(fromDataUrl(labels));
    return { palette, void: nothing, classes: classes.map(({ name, color }) => [name, color]), ...image };
  } catch (error) {
    console.warn("Exemplary: the incoming map could not be read.", error);
    return null;
  }
}

export const isVoid = (name) => VOID_NAMES.includes(plainName(name));
