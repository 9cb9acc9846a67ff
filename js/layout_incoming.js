/** The instances that other nodes hand to a layout, as far as the page can tell without a run. */

import { sizeOf, sourceOf, valueOf } from "./base_host.js";
import { item, parse } from "./layout_state.js";

const MOST_NODES = 200;

/**
 * Follow the input `instances` upstream.
 *
 * @returns {{items: object[], complete: boolean, linked: boolean}} `items` in the node's order; `complete` is false where some of them are only
 *   known to a run: boxes of a detector, the box of a mask, the instances of a playground scene
 */
export function incomingOf(node) {
  const source = sourceOf(node, "instances");
  const found = { items: [], complete: true, linked: source !== null };
  const chain = [];
  for (let at = source; at && chain.length < MOST_NODES; at = at.node ? sourceOf(at.node, "instances") : null) chain.push(at);
  for (const { node: maker } of chain.reverse()) {
    const made = READERS[maker?.type]?.(maker);
    if (made) found.items.push(...made);
    else found.complete = false;
  }
  return found;
}

const linked = (node, name) => (node.inputs?.find((input) => input.name === name)?.link ?? null) !== null;
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** The instances that a node adds, or null where only a run can tell. */
const READERS = {
  ExemplaryInstance(node) {
    const [phrase, ...numbers] = ["phrase", "x", "y", "width", "height", "strength"].map((name) => valueOf(node, name));
    if (typeof phrase !== "string" || !numbers.every(isNumber) || linked(node, "mask")) return null;
    const [x, y, width, height, strength] = numbers;
    return [item([x, y, Math.min(x + width, 1), Math.min(y + height, 1)], phrase, strength)];
  },
  ExemplaryInstanceLayout(node) {
    return readText(node, "layout");
  },
  ExemplaryInstancesFromBoxes(node) {
    return linked(node, "boxes") ? null : readText(node, "json");
  },
};

function readText(node, name) {
  const text = valueOf(node, name);
  if (typeof text !== "string") return null;
  const { width, height } = sizeOf(node);
  return parse(text, width, height).items ?? null;
}
