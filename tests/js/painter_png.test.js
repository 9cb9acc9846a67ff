import { deflateSync, inflateSync } from "node:zlib";
import { describe, expect, test } from "vitest";

import { decodePng, encodePng, fromDataUrl, toDataUrl } from "../../js/painter_png.js";

function random(seed) {
  let state = seed;
  return () => (state = (state * 1103515245 + 12345) & 0x7fffffff) / 0x7fffffff;
}

const images = {
  "one pixel": [1, 1, () => 7],
  "one row": [300, 1, (x) => x & 255],
  "one column": [1, 300, (_, y) => y & 255],
  empty: [640, 480, () => 255],
  stripes: [97, 61, (x) => (x % 9) * 28],
  noise: [65, 33, (() => { const next = random(1); return () => Math.floor(next() * 256); })()],
  "runs of 257, 258 and 259": [774, 2, (x) => (x < 257 ? 1 : x < 515 ? 2 : 3)],
};

const make = ([width, height, at]) => {
  const labels = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) labels[y * width + x] = at(x, y);
  return { width, height, labels };
};

describe.each(Object.entries(images))("%s", (_, image) => {
  test.each([["gray"], ["palette"]])("%s goes there and back", async (kind) => {
    const { width, height, labels } = make(image);
    const colours = kind === "palette" ? Array.from({ length: 256 }, (_, index) => [index, 255 - index, 3]) : null;
    const found = await decodePng(fromDataUrl(toDataUrl(encodePng(labels, width, height, colours))));
    expect([found.width, found.height]).toEqual([width, height]);
    expect(Buffer.from(found.labels).equals(Buffer.from(labels))).toBe(true);
  });

  test("zlib reads the same bytes", () => {
    const { width, height, labels } = make(image);
    const file = Buffer.from(encodePng(labels, width, height));
    const at = file.indexOf("IDAT");
    const rows = inflateSync(file.subarray(at + 4, at + 4 + file.readUInt32BE(at - 4)));
    expect(rows.length).toBe((width + 1) * height);
  });
});

/** A PNG with a filter of its own for every row, as other programs write it. */
function foreign(labels, width, height) {
  const rows = Buffer.alloc((width + 1) * height);
  const value = (x, y) => (x < 0 || y < 0 ? 0 : labels[y * width + x]);
  for (let y = 0; y < height; y++) {
    rows[y * (width + 1)] = y % 5;
    for (let x = 0; x < width; x++) {
      const [a, b, c] = [value(x - 1, y), value(x, y - 1), value(x - 1, y - 1)];
      const near = [Math.abs(b - c), Math.abs(a - c), Math.abs(a + b - 2 * c)];
      const paeth = near[0] <= near[1] && near[0] <= near[2] ? a : near[1] <= near[2] ? b : c;
      rows[y * (width + 1) + 1 + x] = value(x, y) - [0, a, b, (a + b) >> 1, paeth][y % 5];
    }
  }
  const file = Buffer.from(encodePng(labels, width, height));
  const at = file.indexOf("IDAT");
  const data = deflateSync(rows);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(data.length);
  return Buffer.concat([file.subarray(0, at - 4), length, Buffer.from("IDAT"), data, Buffer.alloc(4), file.subarray(at + 8 + file.readUInt32BE(at - 4))]);
}

test("every filter of the format is read", async () => {
  const { width, height, labels } = make(images.noise);
  expect((await decodePng(foreign(labels, width, height))).labels).toEqual(labels);
});

test("what is no label image is refused", async () => {
  const file = encodePng(new Uint8Array(12), 4, 3);
  const with_ = (at, value) => file.map((byte, index) => (index === at ? value : byte));
  for (const wrong of [new Uint8Array(), new Uint8Array(50), file.subarray(0, 40), with_(24, 16), with_(25, 2), with_(28, 1), with_(16, 255), with_(19, 9)]) {
    await expect(decodePng(wrong)).rejects.toThrow();
  }
  expect(() => fromDataUrl("no base64!")).toThrow();
});
