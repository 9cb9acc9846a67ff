import { expect, test } from "vitest";

import { History, boxBetween, moved, parse, resized, toText, toUpstream } from "../../js/layout_state.js";

const LIST = '[{"box":[0,0,0.5,0.5],"phrase":"a","strength":1,"note":[1]}]';

test("both forms are read and written", () => {
  expect(JSON.parse(toText(parse(LIST, 1, 1).items))).toEqual(JSON.parse(LIST));
  const layout = { caption: "c", annotations: [{ box: [600, 100, 300, 300], caption: "a" }] };
  const { items, caption } = parse(JSON.stringify(layout), 1024, 576);
  expect(items[0].box).toEqual([0.58594, 0.17361, 0.87891, 0.69444]);
  expect(JSON.parse(toUpstream(items, caption, 1024, 576))).toEqual(layout);
});

test("boxes stay inside of the image and keep an area", () => {
  expect(boxBetween([0.5, 0.5], [0.5, 0.5])).toEqual([0.5, 0.5, 0.51, 0.51]);
  expect(moved([0.1, 0.1, 0.4, 0.4], 5, -5)).toEqual([0.7, 0, 1, 0.3]);
  expect(resized([0.2, 0.2, 0.4, 0.4], "se", [0, 0])).toEqual([0.2, 0.2, 0.21, 0.21]);
});

test("steps of one gesture are one step of undo", () => {
  const history = new History();
  for (const items of [["a"], ["b"], ["c"]]) history.commit(items, "drag");
  history.settle();
  history.commit(["d"], "drag");
  history.undo();
  expect(history.items).toEqual(["c"]);
  history.undo();
  expect(history.items).toEqual([]);
  expect(history.canUndo).toBe(false);
});
