/**
 * What a layout is, without a page: text in and out, boxes moved and resized on a grid, colours, undo and redo.
 *
 * An item is {id, box: [x0, y0, x1, y1] in 0..1, phrase, strength, more}; `id` lives in the editor only, `more` keeps what else an entry of
 * the JSON held. The node reads the same JSON (py/ifadapter/instances.py) and has the last word on what is valid.
 */

export const SMALLEST = 0.01; // of the picture: a box that can still be seen and grabbed
export const MOST_STRENGTH = 2;
const DECIMALS = 1e5;
const STEPS = 200; // of undo

let lastId = 0;

const round = (value) => Math.round(value * DECIMALS) / DECIMALS;
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** An item with a new identity. */
export function item(box, phrase = "", strength = 1, more = {}) {
  return { id: ++lastId, box: box.map(round), phrase, strength, more };
}

/**
 * Items of either JSON form: ours, or IFAdapter's {caption, annotations} with boxes x y width height in pixels.
 * Never throws: {items, caption} or {error: [word, values]}, the word a key of the locales.
 */
export function parse(text, width, height) {
  if (!text.trim()) return { items: [], caption: "" };
  let data;
  try {
    data = JSON.parse(text);
  } catch (error) {
    return { error: ["notJson", { reason: error.message }] };
  }
  if (Array.isArray(data) && data.length === 1 && Array.isArray(data[0])) [data] = data; // a batch of one image
  const upstream = isObject(data) && ("annotations" in data || (Object.keys(data).length === 1 && "caption" in data));
  if (!upstream && !Array.isArray(data)) return { error: ["notAList", {}] };
  const list = upstream ? annotations(data, width, height) : data.map(entryOfList);
  if (!Array.isArray(list)) return { error: ["notAList", {}] };
  const wrong = list.findIndex((entry) => typeof entry === "string");
  if (wrong >= 0) return { error: [list[wrong], { entry: wrong + 1 }] };
  return { items: list, caption: upstream && typeof data.caption === "string" ? data.caption : "" };
}

/** An item, or the word for what is wrong. */
function entryOfList(entry) {
  if (!isObject(entry)) return "badEntry";
  const { box, phrase, strength = 1, ...more } = entry;
  if (typeof phrase !== "string") return "badPhrase";
  if (!isNumber(strength) || strength < 0 || strength > MOST_STRENGTH) return "badStrength";
  const inside = insideBox(box);
  return inside ? item(inside, phrase, strength, more) : "badBox";
}

function annotations(data, width, height) {
  if (data.annotations?.length === 0 && !data.caption) return [];
  const list = data.annotations?.length === 0 ? null : data.annotations;
  const found = list ?? [{ box: [0, 0, width, height], caption: data.caption ?? "" }];
  if (!Array.isArray(found)) return null;
  return found.map((entry) => {
    if (!isObject(entry)) return "badEntry";
    const caption = Array.isArray(entry.caption) ? entry.caption.join(", ") : entry.caption;
    if (typeof caption !== "string") return "badPhrase";
    const named = isObject(entry.box) ? ["x", "y", "width", "height"].map((name) => entry.box[name]) : entry.box;
    if (!Array.isArray(named) || named.length !== 4 || !named.every(isNumber)) return "badBox";
    const [x, y, w, h] = named;
    const inside = insideBox([x / width, y / height, (x + w) / width, (y + h) / height]);
    return inside ? item(inside, caption) : "badBox";
  });
}

/** Four numbers cut to the picture, or null if they are no box. */
function insideBox(box) {
  if (!Array.isArray(box) || box.length !== 4 || !box.every(isNumber)) return null;
  const [x0, y0, x1, y1] = box.map((value) => clamp(value, 0, 1));
  return x1 > x0 && y1 > y0 ? [x0, y0, x1, y1] : null;
}

/** The node's text: a list, one line an instance, so that people can read and mend it. */
export function toText(items) {
  const lines = items.map(({ box, phrase, strength, more }) => JSON.stringify({ box, phrase, strength, ...more }));
  return lines.length ? `[\n${lines.join(",\n")}\n]` : "[]";
}

/** IFAdapter's layout file. Strengths have no place in it. */
export function toUpstream(items, caption, width, height) {
  const pixels = ([x0, y0, x1, y1]) => {
    const [left, top, right, bottom] = [x0 * width, y0 * height, x1 * width, y1 * height].map(Math.round);
    return [left, top, Math.max(right - left, 1), Math.max(bottom - top, 1)];
  };
  const annotations = items.map(({ box, phrase }) => ({ box: pixels(box), caption: phrase }));
  return JSON.stringify({ caption, annotations }, null, 2);
}

/** A coordinate on the grid of `step` (0..1, 0 is no grid); the far edge of the picture is always a line of it. */
export function snap(value, step) {
  const inside = clamp(value, 0, 1);
  if (!step) return inside;
  const line = Math.min(Math.round(inside / step) * step, 1);
  return Math.abs(1 - inside) < Math.abs(line - inside) ? 1 : line;
}

/** The box with these two corners, on the grid, in the picture, never without area. */
export function boxBetween(a, b, steps = [0, 0]) {
  const [x0, x1] = span(a[0], b[0], steps[0]);
  const [y0, y1] = span(a[1], b[1], steps[1]);
  return [x0, y0, x1, y1].map(round);
}

function span(a, b, step) {
  const [low, high] = [Math.min(a, b), Math.max(a, b)].map((value) => snap(value, step));
  if (high - low >= SMALLEST) return [low, high];
  const size = Math.max(SMALLEST, step);
  return low + size <= 1 ? [low, low + size] : [Math.max(1 - size, 0), 1];
}

/** The box moved by (dx, dy); its size stays, its first corner is on the grid, it does not leave the picture. */
export function moved(box, dx, dy, steps = [0, 0]) {
  const [x0, y0, x1, y1] = box;
  const left = slide(x0, x1, dx, steps[0]);
  const top = slide(y0, y1, dy, steps[1]);
  return [left, top, left + x1 - x0, top + y1 - y0].map(round);
}

function slide(low, high, by, step) {
  if (by === 0) return low;
  const room = 1 - (high - low);
  const wanted = clamp(low + by, 0, room);
  const line = step ? Math.round(wanted / step) * step : wanted;
  if (wanted === room && by > 0) return room; // pushed against the far edge
  return clamp(line, 0, room);
}

/**
 * The box with the edges that `handle` names ("n", "se", ...) pulled to a point; it stops before it turns inside out.
 */
export function resized(box, handle, point, steps = [0, 0]) {
  let [x0, y0, x1, y1] = box;
  const [x, y] = [snap(point[0], steps[0]), snap(point[1], steps[1])];
  if (handle.includes("w")) x0 = clamp(x, 0, x1 - SMALLEST);
  if (handle.includes("e")) x1 = clamp(x, x0 + SMALLEST, 1);
  if (handle.includes("n")) y0 = clamp(y, 0, y1 - SMALLEST);
  if (handle.includes("s")) y1 = clamp(y, y0 + SMALLEST, 1);
  return [x0, y0, x1, y1].map(round);
}

/** A list with one entry at another place. */
export function reordered(items, from, to) {
  const list = [...items];
  list.splice(clamp(to, 0, list.length - 1), 0, ...list.splice(from, 1));
  return list;
}

/** The colour of an instance by its place in the list; the node Instance Map Preview draws in the same ones. */
export function colour(index) {
  const hue = ((index * 0.618034) % 1) * 6;
  const channel = (offset) => {
    const k = (offset + hue) % 6;
    return Math.round(255 * 0.95 * (1 - 0.65 * clamp(Math.min(k, 4 - k), 0, 1)));
  };
  return [channel(5), channel(3), channel(1)];
}

/** Items and selection with their past and future. A change with the same `kind` as the one before continues it. */
export class History {
  constructor() {
    this.reset([]);
  }

  get items() {
    return this.states[this.at].items;
  }

  get canUndo() {
    return this.at > 0;
  }

  get canRedo() {
    return this.at < this.states.length - 1;
  }

  /** Start anew, nothing to undo. */
  reset(items) {
    this.states = [{ items, kind: null }];
    this.at = 0;
  }

  /** The next state. `kind` joins the steps of one gesture; null stands alone. */
  commit(items, kind = null) {
    const past = this.states.slice(0, this.at + 1);
    if (kind !== null && past.length > 1 && past[this.at].kind === kind) past.pop();
    past.push({ items, kind });
    this.states = past.slice(-STEPS);
    this.at = this.states.length - 1;
  }

  /** A gesture is over: the next change of the same kind is a step of its own. */
  settle() {
    this.states[this.at].kind = null;
  }

  undo() {
    this.settle();
    this.at = Math.max(this.at - 1, 0);
  }

  redo() {
    this.at = Math.min(this.at + 1, this.states.length - 1);
  }
}
