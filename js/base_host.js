/** What both editors ask of ComfyUI: texts, links, images, keys and the wheel. Works inside of subgraphs and in both renderers. */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const SUBGRAPH_INPUT = -10; // id of the host's node that stands for a subgraph's inputs
const BYPASSED = 4;
const MOST_HOPS = 50;
const WATCH_MS = 400;

let texts = {};
let loading = null;

/** Load the locales once a page. */
export function loadWords() {
  loading ??= api
    .fetchApi("/i18n")
    .then((answer) => answer.json())
    .then((found) => (texts = found))
    .catch((error) => console.warn("Exemplary: the editors' texts did not load.", error));
  return loading;
}

/**
 * A function that looks up the texts of one section of locales/<language>/main.json, in English where there is no other; {names} are filled in.
 *
 * @param {string} section
 * @returns {(key: string, values?: Record<string, unknown>) => string}
 */
export function wordsOf(section) {
  return (key, values = {}) => {
    const language = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
    const found = [language, language.split("-")[0], "en"].map((name) => texts[name]?.[section]?.[key]).find((text) => text);
    return (found ?? key).replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole));
  };
}

/** Let the host remember the workflow, as it does after its own widgets' changes. */
export function remember() {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  if (tracker?.captureCanvasState) tracker.captureCanvasState();
  else tracker?.checkState?.();
}

/** Call `then` after the method `name` of an object. */
export function after(target, name, then) {
  const before = target[name];
  target[name] = function (...values) {
    const result = before?.apply(this, values);
    then.apply(this, values);
    return result;
  };
}

/**
 * What feeds an input: the node that makes the value and the number of its output, or the widget on a subgraph's node. Reroutes, bypassed nodes
 * and the borders of subgraphs are passed. null: nothing is connected.
 *
 * @typedef {{node: import("@comfyorg/comfyui-frontend-types").LGraphNode, slot?: number, widget?: {name: string, value: unknown}}} Source
 * @param {import("@comfyorg/comfyui-frontend-types").LGraphNode} node
 * @param {string} name of the input
 * @returns {Source | null}
 */
export function sourceOf(node, name) {
  const input = node.inputs?.find((one) => one.name === name);
  return input ? follow(node.graph, input.link, 0) : null;
}

function follow(graph, id, hops) {
  if (!graph || id === null || id === undefined || hops > MOST_HOPS) return null;
  const link = graph.getLink?.(id) ?? graph.links?.get?.(id) ?? graph.links?.[id];
  if (!link) return null;
  if (link.origin_id === SUBGRAPH_INPUT) return outside(graph, link.origin_slot, hops);
  const node = graph.getNodeById(link.origin_id);
  if (!node) return null;
  if (node.type === "Reroute") return follow(graph, node.inputs?.[0]?.link, hops + 1);
  if (node.subgraph) return follow(node.subgraph, node.subgraph.outputs?.[link.origin_slot]?.linkIds?.[0], hops + 1);
  if (node.mode === BYPASSED) {
    const type = node.outputs?.[link.origin_slot]?.type;
    return follow(graph, node.inputs?.find((input) => input.type === type && input.link !== null)?.link, hops + 1);
  }
  return { node, slot: link.origin_slot };
}

/** Go on outside of a subgraph, at the node that shows it. */
function outside(graph, slot, hops) {
  const holder = holderOf(graph, graph.rootGraph ?? app.rootGraph ?? app.graph);
  const input = holder?.inputs?.[slot];
  if (!input) return null;
  if (input.link !== null && input.link !== undefined) return follow(holder.graph, input.link, hops + 1);
  const name = input.widget?.name ?? input.name;
  const widget = input._widget ?? holder.widgets?.find((one) => one.name === name);
  return widget ? { node: holder, widget } : null;
}

function holderOf(graph, within, depth = 0) {
  for (const node of within?._nodes ?? within?.nodes ?? []) {
    if (!node.subgraph || depth > MOST_HOPS) continue;
    if (node.subgraph === graph) return node;
    const found = holderOf(graph, node.subgraph, depth + 1);
    if (found) return found;
  }
  return null;
}

/**
 * The value that an input has now: of its own widget, or of the widget that feeds it. undefined: only a run can tell.
 *
 * @param {import("@comfyorg/comfyui-frontend-types").LGraphNode} node
 * @param {string} name
 */
export function valueOf(node, name, hops = 0) {
  const linked = node.inputs?.find((one) => one.name === name)?.link ?? null;
  if (linked === null || !node.graph) return node.widgets?.find((one) => one.name === name)?.value;
  const source = sourceOf(node, name);
  if (!source || hops > MOST_HOPS) return undefined;
  if (source.widget) return source.widget.value;
  const { node: maker, slot } = source;
  const output = maker.outputs?.[slot]?.name;
  const own = maker.widgets?.filter((one) => typeof one.value === "number" || typeof one.value === "string") ?? [];
  const found = own.find((one) => one.name === output) ?? own.find((one) => one.name === "value");
  if (found) return valueOf(maker, found.name, hops + 1);
  if (["width", "height"].includes(String(output).toLowerCase())) return measured(maker, String(output).toLowerCase());
  return maker.outputs?.length === 1 && own.length === 1 ? own[0].value : undefined;
}

/** Of a node like Get Image Size: the size of the image that it is given, if the page shows that image. */
function measured(node, side) {
  const source = sourceOf(node, "image");
  const shown = source?.node.imgs?.[0];
  return (side === "width" ? shown?.naturalWidth : shown?.naturalHeight) || undefined;
}

/**
 * The size that a node's inputs width and height give. `known` is false where only a run can tell, and then the widget's own value is used.
 *
 * @returns {{width: number, height: number, known: boolean, linked: boolean}}
 */
export function sizeOf(node) {
  const read = (name) => {
    const wanted = Math.round(Number(valueOf(node, name)));
    if (wanted > 0) return [wanted, true];
    const own = Math.round(Number(node.widgets?.find((widget) => widget.name === name)?.value));
    return [own > 0 ? own : 512, false];
  };
  const [[width, first], [height, second]] = [read("width"), read("height")];
  const linked = ["width", "height"].some((name) => (node.inputs?.find((one) => one.name === name)?.link ?? null) !== null);
  return { width, height, known: first && second, linked };
}

/** Set the widgets width and height of a node, as a user's hand does. */
export function setSize(node, width, height) {
  for (const [name, value] of [["width", width], ["height", height]]) {
    const widget = node.widgets?.find((one) => one.name === name);
    if (!widget) continue;
    widget.value = value;
    widget.callback?.(value, app.canvas, node);
  }
  remember();
}

const viewUrl = ({ filename, subfolder = "", type = "output" }) =>
  api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);

/**
 * The address of the image that a node's image input shows elsewhere on the page, or null.
 *
 * @param executed the image that the node itself was given when it last ran, or null
 */
export function connectedImage(node, executed, name = "image") {
  const source = sourceOf(node, name);
  if (!source) return null;
  const { node: maker, widget } = source;
  if (!widget) {
    const shown = maker.imgs?.[maker.imageIndex ?? 0]?.src;
    if (shown) return shown;
    const root = maker.graph?.rootGraph ?? app.rootGraph ?? app.graph;
    const inside = maker.graph && maker.graph !== root;
    const output = app.nodeOutputs?.[inside ? `${maker.graph.id}:${maker.id}` : maker.id]?.images?.[0];
    if (output?.filename) return viewUrl(output);
    const chosen = maker.widgets?.find((one) => one.name === "image")?.value;
    const file = typeof chosen === "string" && /^(?:(.*)\/)?([^/]+?\.\w+)(?: \[(\w+)\])?$/.exec(chosen);
    if (file) return viewUrl({ subfolder: file[1] ?? "", filename: file[2], type: file[3] ?? "input" });
  }
  return executed ? viewUrl(executed) : null;
}

/** What happens in the editor stays in the editor: no dragging of nodes, no file that replaces the workflow. The middle button is the graph's. */
export function isolate(root) {
  for (const name of ["pointerdown", "pointermove", "pointerup", "dblclick"]) {
    root.addEventListener(name, (event) => event.button !== 1 && !(event.buttons & 4) && event.stopPropagation());
  }
  root.addEventListener("dragover", (event) => {
    event.preventDefault();
    event.stopPropagation();
  });
}

/**
 * Two fingers inside of these elements are theirs: the host listens on an element around the nodes and would zoom the graph as well. Pointer
 * events still come.
 */
export function keepTouches(selector) {
  for (const name of ["touchstart", "touchmove", "touchend", "touchcancel"]) {
    window.addEventListener(name, (event) => event.target.closest?.(selector) && event.stopPropagation(), { capture: true, passive: true });
  }
}

/** Keep a key from the graph, whose shortcuts would delete or move nodes. Shortcuts such as "run" and "save" still reach the host. */
export function keepKey(event, done) {
  const control = event.ctrlKey || event.metaKey;
  if (done) event.preventDefault();
  const texts = control && ["a", "c", "v", "x", "y", "z"].includes(event.key.toLowerCase());
  const modifier = ["Shift", "Control", "Alt", "Meta"].includes(event.key);
  if (done || texts || (!control && !modifier) || event.key === "Delete" || event.key === "Backspace") event.stopPropagation();
}

/**
 * The middle button moves the graph and the wheel zooms it, as over the host's own text fields; what matches `scrollers` and can scroll scrolls.
 *
 * @param {(event: WheelEvent) => boolean} [wheel] uses the wheel itself and says so
 */
export function passToCanvas(root, scrollers, wheel = () => false) {
  const classic = () => root.closest(".dom-widget") !== null; // the Vue renderer handles them itself
  const pass = (name, wanted, act) => root.addEventListener(name, (event) => classic() && wanted(event) && act(event));
  pass("pointerdown", (event) => event.button === 1, (event) => app.canvas.processMouseDown(event));
  pass("pointermove", (event) => (event.buttons & 4) === 4, (event) => app.canvas.processMouseMove(event));
  pass("pointerup", (event) => event.button === 1, (event) => app.canvas.processMouseUp(event));
  const onWheel = (event) => {
    const scroller = event.target.closest(scrollers);
    if (wheel(event)) {
      event.preventDefault();
      event.stopPropagation();
    } else if (scroller && scroller.scrollHeight > scroller.clientHeight && !event.ctrlKey) event.stopPropagation();
    else if (classic()) app.canvas.processMouseWheel(event);
  };
  root.addEventListener("wheel", onWheel, { passive: false });
}

/**
 * Call `refresh` when the node's links, results or size inputs may have changed. Promoted widgets and nodes upstream change without a word, so a
 * visible editor also looks twice a second.
 */
export function watch(node, root, refresh) {
  const visible = () => root.isConnected && root.offsetParent !== null && !document.hidden;
  const timer = setInterval(() => visible() && refresh(), WATCH_MS);
  root.addEventListener("pointerenter", refresh);
  after(node, "onConnectionsChange", () => setTimeout(refresh)); // when the link is there
  after(node, "onConfigure", refresh);
  after(node, "onRemoved", () => clearInterval(timer));
}
