/**
 * The widget EXEMPLARY_PAINTING of the node Semantic Map Painter: the painter on the node, its value one text with the label image and classes.
 *
 * The node's input is an ordinary STRING with this `widgetType`: prompts of the API hold the text, a link from any STRING output fits.
 */

import { app } from "../../scripts/app.js";
import { after, connectedImage, keepTouches, loadWords, passToCanvas, remember, setSize, sizeOf, sourceOf, watch, wordsOf } from "./base_host.js";
import { Panel } from "./painter_panel.js";

const BACKGROUND = "exemplary_background"; // the connected image, as the node saw it when it last ran
const INCOMING = "exemplary_map"; // the connected semantic map
const HEIGHT = 470; // least height of the widget

let palettes = {};

async function load() {
  keepTouches(".exp-stage");
  const file = fetch(new URL("./palettes.json", import.meta.url)).then((answer) => answer.json());
  [palettes] = await Promise.all([file.catch(() => ({})), loadWords()]);
}

function painterWidget(node, name, inputData) {
  let executed = null;
  let widget = null;
  const panel = new Panel({
    palettes,
    words: wordsOf("exemplaryPainter"),
    settled: remember,
    resized: (width, height) => setSize(node, width, height),
    told(text) {
      widget?.callback?.(text);
      node.graph?.setDirtyCanvas(true, false);
    },
  });
  widget = node.addDOMWidget(name, "EXEMPLARY_PAINTING", panel.root, {
    getValue: () => panel.text,
    setValue: (value) => {
      panel.setSize(sizeOf(node));
      panel.setText(typeof value === "string" ? value : JSON.stringify(value ?? ""));
    },
    getMinHeight: () => HEIGHT,
  });
  const refresh = () => {
    panel.setSize(sizeOf(node));
    panel.setLinked(sourceOf(node, "semantic_map") !== null);
    panel.setConnected(connectedImage(node, executed));
  };
  for (const size of node.widgets.filter((one) => one.name === "width" || one.name === "height")) after(size, "callback", refresh);
  watch(node, panel.root, refresh);
  after(node, "onExecuted", (output) => {
    executed = output?.[BACKGROUND]?.[0] ?? null;
    refresh();
    panel.setIncoming(output?.[INCOMING]?.[0] ?? null);
  });
  after(node, "onRemoved", () => panel.destroy());
  passToCanvas(panel.root, ".exp-list", (event) => panel.stage.wheel(event));
  widget.value = inputData[1]?.default ?? "";
  return { widget, minWidth: 500, minHeight: 780 };
}

app.registerExtension({
  name: "exemplary.painter",
  init: load,
  getCustomWidgets: () => ({ EXEMPLARY_PAINTING: painterWidget }),
});
