/**
 * The widget EXEMPLARY_LAYOUT of the node Instance Layout: the editor on the node, its value the layout's JSON as one string.
 *
 * The node's input is an ordinary STRING with this `widgetType`: prompts of the API hold the text, a link from any STRING output fits.
 */

import { app } from "../../scripts/app.js";
import { after, connectedImage, loadWords, passToCanvas, remember, setSize, sizeOf, watch, wordsOf } from "./base_host.js";
import { incomingOf } from "./layout_incoming.js";
import { Panel } from "./layout_panel.js";

const BACKGROUND = "exemplary_background"; // the connected image, as the node saw it when it last ran
const HEIGHT = 420; // least height of the widget

function layoutWidget(node, name, inputData) {
  let executed = null;
  let widget = null;
  const panel = new Panel({
    words: wordsOf("exemplaryLayoutEditor"),
    settled: remember,
    resized: (width, height) => setSize(node, width, height),
    disconnect() {
      const slot = node.inputs.findIndex((input) => input.name === "instances");
      if (slot >= 0) node.disconnectInput(slot);
    },
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
    panel.setIncoming(incomingOf(node));
  };
  for (const size of node.widgets.filter((one) => one.name === "width" || one.name === "height")) after(size, "callback", refresh);
  watch(node, panel.root, refresh);
  after(node, "onExecuted", (output) => {
    executed = output?.[BACKGROUND]?.[0] ?? null;
    refresh();
  });
  after(node, "onRemoved", () => panel.destroy());
  passToCanvas(panel.root, ".exl-list, .exl-text, .exl-field");
  widget.value = inputData[1]?.default ?? "[]";
  return { widget, minWidth: 420, minHeight: 720 };
}

app.registerExtension({
  name: "exemplary.layoutEditor",
  init: loadWords,
  getCustomWidgets: () => ({ EXEMPLARY_LAYOUT: layoutWidget }),
});
