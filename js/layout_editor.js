/**
 * The widget EXEMPLARY_LAYOUT of the node Instance Layout: the editor on the node, its value the layout's JSON as one string.
 *
 * The node's input is an ordinary STRING with this `widgetType`: prompts of the API hold the text, a link from any STRING output fits.
 */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { Panel } from "./layout_panel.js";

const WORDS = "exemplaryLayoutEditor"; // in locales/<language>/main.json
const BACKGROUND = "exemplary_background"; // the connected image, as the node saw it when it last ran
const HEIGHT = 400; // least height of the widget

let texts = {};

/** The words of the host's language, or English ones; {names} are filled in. */
function words(key, values = {}) {
  const language = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
  const found = [language, language.split("-")[0], "en"].map((name) => texts[name]?.[WORDS]?.[key]).find((text) => text);
  return (found ?? key).replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole));
}

async function loadWords() {
  try {
    texts = await (await api.fetchApi("/i18n")).json();
  } catch (error) {
    console.warn("Exemplary: the layout editor's words did not load.", error);
  }
}

/** Let the host remember the workflow, as it does after its own widgets' changes. */
function remember() {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  if (tracker?.captureCanvasState) tracker.captureCanvasState();
  else tracker?.checkState?.();
}

const after = (target, name, then) => {
  const before = target[name];
  target[name] = function (...values) {
    const result = before?.apply(this, values);
    then.apply(this, values);
    return result;
  };
};

function sizeOf(node) {
  const value = (name) => {
    const found = Math.round(Number(node.widgets?.find((widget) => widget.name === name)?.value));
    return found > 0 ? found : 512;
  };
  return { width: value("width"), height: value("height") };
}

const viewUrl = ({ filename, subfolder = "", type = "output" }) =>
  api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);

/** The address of the picture that the node's image input shows elsewhere on the page, or null. */
function connectedImage(node, executed) {
  const slot = node.inputs?.findIndex(({ name }) => name === "image") ?? -1;
  let source = slot < 0 ? null : node.getInputNode?.(slot);
  for (let hops = 0; source?.type === "Reroute" && hops < 50; hops++) source = source.getInputNode(0);
  if (!source) return null;
  const shown = source.imgs?.[source.imageIndex ?? 0]?.src;
  if (shown) return shown;
  const output = app.nodeOutputs?.[source.id]?.images?.[0];
  if (output?.filename) return viewUrl(output);
  const chosen = source.widgets?.find(({ name }) => name === "image")?.value;
  const file = typeof chosen === "string" && /^(?:(.*)\/)?([^/]+?\.\w+)(?: \[(\w+)\])?$/.exec(chosen);
  if (file) return viewUrl({ subfolder: file[1] ?? "", filename: file[2], type: file[3] ?? "input" });
  return executed ? viewUrl(executed) : null;
}

/** The middle button moves the graph and the wheel zooms it, as over the host's own text fields; a list that can scroll scrolls. */
function passToCanvas(root) {
  const classic = () => root.closest(".dom-widget") !== null; // the Vue renderer hears them itself
  const pass = (name, wanted, act) => root.addEventListener(name, (event) => classic() && wanted(event) && act(event));
  pass("pointerdown", (event) => event.button === 1, (event) => app.canvas.processMouseDown(event));
  pass("pointermove", (event) => (event.buttons & 4) === 4, (event) => app.canvas.processMouseMove(event));
  pass("pointerup", (event) => event.button === 1, (event) => app.canvas.processMouseUp(event));
  root.addEventListener("wheel", (event) => {
    const scroller = event.target.closest(".exl-list, .exl-text, .exl-field");
    if (scroller && scroller.scrollHeight > scroller.clientHeight && !event.ctrlKey) event.stopPropagation();
    else if (classic()) app.canvas.processMouseWheel(event);
  });
}

function layoutWidget(node, name, inputData) {
  let executed = null;
  let widget = null;
  const panel = new Panel({
    words,
    settled: remember,
    told(text) {
      widget?.callback?.(text);
      node.graph?.setDirtyCanvas(true, false);
    },
  });
  widget = node.addDOMWidget(name, "EXEMPLARY_LAYOUT", panel.root, {
    getValue: () => panel.text,
    setValue: (value) => {
      panel.setSize(sizeOf(node));
      panel.setText(typeof value === "string" ? value : JSON.stringify(value ?? []));
    },
    getMinHeight: () => HEIGHT,
  });
  const refresh = () => {
    panel.setSize(sizeOf(node));
    panel.setConnected(connectedImage(node, executed));
  };
  for (const size of node.widgets.filter((one) => one.name === "width" || one.name === "height")) after(size, "callback", refresh);
  panel.root.addEventListener("pointerenter", refresh);
  after(node, "onConnectionsChange", () => setTimeout(refresh)); // after the link is there
  after(node, "onConfigure", refresh);
  after(node, "onExecuted", (output) => {
    executed = output?.[BACKGROUND]?.[0] ?? null;
    refresh();
  });
  after(node, "onRemoved", () => panel.destroy());
  passToCanvas(panel.root);
  widget.value = inputData[1]?.default ?? "[]";
  return { widget, minWidth: 420, minHeight: 700 };
}

app.registerExtension({
  name: "exemplary.layoutEditor",
  init: loadWords,
  getCustomWidgets: () => ({ EXEMPLARY_LAYOUT: layoutWidget }),
});
