import { expect, test } from "vitest";

import { encodePng, toDataUrl } from "../../js/painter_png.js";
import { ERASED, UNPAINTED } from "../../js/painter_raster.js";
import { OWN, Painting, badName, freeColour, parsePainting } from "../../js/painter_state.js";

const palettes = { small: { void: "#101010", classes: [["sky", "#0000ff"], ["traffic light", "#ffff00"]] } };

function painted(size = 4) {
  const painting = new Painting(palettes);
  painting.setSize(size, size);
  painting.palette = "small";
  painting.relook();
  return painting;
}

function paint(painting, name, from = [0, 0], to = [painting.width, painting.height]) {
  painting.begin();
  const label = painting.labelOf(name);
  painting.commit(painting.raster.rectangle(from, to, label));
}

const base = (width, height, labels) => ({
  palette: "other",
  void: "#000000",
  classes: [["Sky", "#111111"], ["car", "#222222"]],
  width,
  height,
  labels: Uint8Array.from(labels),
});

test("a text goes there and back", async () => {
  const painting = painted();
  paint(painting, "traffic light", [0, 0], [2, 4]);
  painting.begin();
  painting.selected = painting.add("dragon", "#123456");
  painting.commit(painting.raster.rectangle([2, 0], [3, 4], painting.labelOf("dragon")));
  paint(painting, null, [3, 0], [4, 1]);
  const text = painting.toText();
  expect(JSON.parse(text).classes).toEqual([{ name: "traffic light", color: "#ffff00" }, { name: "dragon", color: "#123456" }]);
  const again = new Painting(palettes);
  again.setSize(4, 4);
  again.take(await parsePainting(text, palettes));
  expect([...again.raster.labels.slice(0, 4)]).toEqual([0, 0, 1, ERASED]);
  expect([...again.raster.labels.slice(4, 8)]).toEqual([0, 0, 1, UNPAINTED]);
  expect(again.toText()).toBe(text);
  expect(again.nameAt([2.5, 2.5])).toBe("dragon");
});

test("an empty painting has an empty text", () => {
  expect(new Painting(palettes).toText()).toBe("");
});

test("undo and redo bring back pixels, classes and palette", () => {
  const painting = painted();
  const texts = [painting.toText()];
  for (const name of ["sky", "traffic light", null]) {
    paint(painting, name, [0, 0], [texts.length, 4]);
    texts.push(painting.toText());
  }
  painting.begin();
  painting.palette = OWN;
  painting.relook();
  painting.commit(null);
  texts.push(painting.toText());
  for (const text of [...texts].reverse()) {
    expect(painting.toText()).toBe(text);
    painting.undo();
  }
  for (const text of texts) {
    expect(painting.toText()).toBe(text);
    painting.redo();
  }
  expect(painting.redo()).toBe(false);
});

test("a step that is given up leaves no trace", () => {
  const painting = painted();
  const before = painting.toText();
  painting.begin();
  painting.raster.stroke([1, 1], [3, 3], 2, painting.labelOf("sky"));
  painting.cancel();
  expect(painting.toText()).toBe(before);
  expect(painting.past.length).toBe(0);
});

test("a removed class leaves unpainted pixels and the others their names", () => {
  const painting = painted();
  paint(painting, "sky", [0, 0], [1, 4]);
  painting.begin();
  painting.add("dragon");
  painting.add("wizard");
  painting.commit(null);
  paint(painting, "dragon", [1, 0], [2, 4]);
  paint(painting, "wizard", [2, 0], [3, 4]);
  painting.remove("dragon");
  expect([0, 1, 2].map((x) => painting.nameAt([x + 0.5, 1]))).toEqual(["sky", undefined, "wizard"]);
});

test("the incoming map shows where nothing is painted, and counts as one class with what is", () => {
  const painting = painted(2);
  painting.setBase(base(4, 1, [0, 0, 1, 255]));
  expect([painting.width, painting.height]).toEqual([4, 1]);
  paint(painting, "sky", [1, 0], [2, 1]);
  expect([0, 1, 2, 3].map((x) => painting.nameAt([x + 0.5, 0]))).toEqual(["Sky", "Sky", "car", null]);
  painting.pair();
  expect(painting.seen(0)).toBe(painting.seen(1));
  expect(painting.seen(1)).not.toBe(painting.seen(2));
  expect([...painting.coverage()]).toEqual([["sky", 0.5], ["car", 0.25]]);
  expect([...painting.pixels([0, 0, 4, 1])]).toEqual([17, 17, 17, 255, 17, 17, 17, 255, 34, 34, 34, 255, 0, 0, 0, 255]);
  painting.adopt();
  painting.setBase(null);
  expect(painting.width).toBe(2);
});

test("a painting is resized from what was stored, however often the size changes", async () => {
  const labels = Uint8Array.from({ length: 64 }, (_, at) => at % 2);
  const text = JSON.stringify({ classes: [{ name: "a", color: "#ff0000" }, { name: "b", color: "#00ff00" }], labels: toDataUrl(encodePng(labels, 8, 8)) });
  const painting = new Painting(palettes);
  painting.setSize(8, 8);
  painting.take(await parsePainting(text, palettes));
  for (const size of [2, 5, 16, 8]) painting.setSize(size, size);
  expect(painting.raster.labels).toEqual(labels);
});

test("wrong texts are named and never thrown", async () => {
  const file = toDataUrl(encodePng(Uint8Array.from([0, 3]), 2, 1));
  const wrong = { "{": "notJson", "[]": "notAPainting", 3: "notAPainting", null: "notAPainting", '{"palette":"x"}': "badPalette" };
  wrong['{"palette":"constructor"}'] = "badPalette";
  wrong['{"classes":3}'] = "badClasses";
  wrong['{"classes":[{"name":"a","color":"red"}]}'] = "badClasses";
  wrong['{"labels":"abc"}'] = "badImage";
  wrong[JSON.stringify({ classes: [], labels: file })] = "badLabels";
  for (const [text, word] of Object.entries(wrong)) expect((await parsePainting(text, palettes)).error?.[0], text).toBe(word);
});

test("names and colours for new classes", () => {
  expect(badName("a")).toBe(null);
  expect(badName(" ")).toBe("nameLength");
  expect(badName("x".repeat(81))).toBe("nameLength");
  expect(badName("a, b")).toBe("nameSigns");
  expect(badName("a->b")).toBe("nameSigns");
  const colours = [];
  for (let number = 0; number < 40; number++) colours.push(freeColour(["#000000", ...colours]));
  expect(new Set(colours).size).toBe(40);
});
