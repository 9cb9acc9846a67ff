import { expect, test } from "vitest";

import { Raster, UNPAINTED } from "../../js/painter_raster.js";

const count = (raster, label) => raster.labels.filter((one) => one === label).length;

test("a stroke covers its circle and says where", () => {
  const raster = new Raster(64, 64);
  expect(raster.stroke([32, 32], [32, 32], 10, 3)).toEqual([22, 22, 42, 42]);
  expect(count(raster, 3)).toBeGreaterThan(0.95 * Math.PI * 100);
  expect(count(raster, 3)).toBeLessThan(1.05 * Math.PI * 100);
});

test("a fine brush paints the pixel under it, and none outside the image", () => {
  const raster = new Raster(8, 8);
  raster.stroke([3.9, 4.9], [3.9, 4.9], 0.3, 1);
  expect(raster.labels[4 * 8 + 3]).toBe(1);
  expect(count(raster, 1)).toBe(1);
  expect(raster.stroke([-40, -40], [-30, -40], 5, 2)).toBe(null);
  raster.stroke([-5, 4], [12, 4], 1, 2);
  expect(count(raster, 2)).toBe(16);
});

test("rectangles and polygons take the pixels whose centre is inside", () => {
  const raster = new Raster(10, 10);
  expect(raster.rectangle([7.6, 2.2], [2.4, 5.8], 1)).toEqual([2, 2, 8, 6]);
  expect(count(raster, 1)).toBe(24);
  raster.polygon([[0, 0], [10, 0], [10, 10], [0, 10]], 2);
  expect(count(raster, 2)).toBe(100);
  raster.polygon([[0, 0], [10, 10], [0, 10]], 3);
  expect(count(raster, 3)).toBeGreaterThan(44);
  expect(count(raster, 3)).toBeLessThan(56);
  expect(raster.polygon([[0, 0], [5, 5]], 4)).toBe(null);
});

test("neighbouring polygons leave no gap and no overlap", () => {
  const [first, second] = [new Raster(50, 50), new Raster(50, 50)];
  first.polygon([[0, 0], [23.37, 0], [31.7, 50], [0, 50]], 1);
  second.polygon([[23.37, 0], [50, 0], [50, 50], [31.7, 50]], 1);
  first.labels.forEach((label, at) => expect((label === 1) !== (second.labels[at] === 1)).toBe(true));
});

test("fill stays inside of an area, whose edge may be diagonal", () => {
  const raster = new Raster(20, 20);
  for (let at = 0; at < 20; at++) raster.labels[at * 20 + at] = 5;
  const area = raster.fill([15.5, 2.5], 1, (at) => raster.labels[at]);
  expect(area).toEqual([1, 0, 20, 19]);
  expect(count(raster, 1)).toBe(190);
  expect(count(raster, UNPAINTED)).toBe(190);
  expect(raster.fill([30, 2], 1, (at) => raster.labels[at])).toBe(null);
});

test("a copy of a rectangle can be put back", () => {
  const raster = new Raster(9, 7, Uint8Array.from({ length: 63 }, (_, at) => at));
  const before = raster.labels.slice();
  const copy = raster.read([2, 1, 6, 5]);
  raster.rectangle([0, 0], [9, 7], 200);
  raster.put([2, 1, 6, 5], copy);
  expect(raster.labels[1 * 9 + 2]).toBe(before[1 * 9 + 2]);
  expect(count(raster, 200)).toBe(63 - 16);
});

test("another size takes the label at the centre of each pixel", () => {
  const raster = new Raster(2, 2, Uint8Array.from([0, 1, 2, 3]));
  expect([...raster.resized(4, 2).labels]).toEqual([0, 0, 1, 1, 2, 2, 3, 3]);
  expect([...raster.resized(1, 1).labels]).toEqual([3]);
});
