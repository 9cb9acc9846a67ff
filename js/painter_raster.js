/** Labels of pixels and the tools that change them, without a page. A rectangle is [left, top, right, bottom], right and bottom outside. */

/** Nobody painted here: the incoming map shows. */
export const UNPAINTED = 255;
/** Painted with void. */
export const ERASED = 254;

const union = (a, b) => (a && b ? [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[2], b[2]), Math.max(a[3], b[3])] : (a ?? b));

/** An image of labels. */
export class Raster {
  constructor(width, height, labels = new Uint8Array(width * height).fill(UNPAINTED)) {
    Object.assign(this, { width, height, labels });
  }

  /** The same at another size: every pixel takes the label at its centre, as the node does (py/semantic/painting.py). */
  resized(width, height) {
    if (width === this.width && height === this.height) return this;
    const labels = new Uint8Array(width * height);
    const columns = Uint32Array.from({ length: width }, (_, x) => Math.floor(((x * 2 + 1) * this.width) / (2 * width)));
    for (let y = 0; y < height; y++) {
      const from = Math.floor(((y * 2 + 1) * this.height) / (2 * height)) * this.width;
      for (let x = 0; x < width; x++) labels[y * width + x] = this.labels[from + columns[x]];
    }
    return new Raster(width, height, labels);
  }

  /** A rectangle cut to the image in whole pixels, or null. */
  cut([x0, y0, x1, y1]) {
    const left = Math.max(Math.floor(x0), 0);
    const top = Math.max(Math.floor(y0), 0);
    const right = Math.min(Math.ceil(x1), this.width);
    const bottom = Math.min(Math.ceil(y1), this.height);
    return right > left && bottom > top ? [left, top, right, bottom] : null;
  }

  /**
   * A round brush drawn from one point to another. Pixels whose centre is within `radius` of the line take the label; the pixel under each end
   * always does. Returns what changed.
   */
  stroke([ax, ay], [bx, by], radius, label) {
    const area = this.cut([Math.min(ax, bx) - radius, Math.min(ay, by) - radius, Math.max(ax, bx) + radius, Math.max(ay, by) + radius]);
    const [dx, dy] = [bx - ax, by - ay];
    const length = dx * dx + dy * dy;
    const limit = radius * radius;
    if (area) {
      const [left, top, right, bottom] = area;
      for (let y = top; y < bottom; y++) {
        const py = y + 0.5 - ay;
        for (let x = left, at = y * this.width + left; x < right; x++, at++) {
          const px = x + 0.5 - ax;
          const along = length ? Math.min(Math.max((px * dx + py * dy) / length, 0), 1) : 0;
          const ex = px - along * dx;
          const ey = py - along * dy;
          if (ex * ex + ey * ey <= limit) this.labels[at] = label;
        }
      }
    }
    return union(area, union(this.dot(ax, ay, label), this.dot(bx, by, label)));
  }

  dot(x, y, label) {
    const area = this.cut([Math.floor(x), Math.floor(y), Math.floor(x) + 1, Math.floor(y) + 1]);
    if (area) this.labels[area[1] * this.width + area[0]] = label;
    return area;
  }

  /** A filled rectangle between two corners. */
  rectangle([ax, ay], [bx, by], label) {
    const area = this.cut([Math.min(ax, bx), Math.min(ay, by), Math.max(ax, bx), Math.max(ay, by)].map(Math.round));
    if (!area) return null;
    const [left, top, right, bottom] = area;
    for (let y = top; y < bottom; y++) this.labels.fill(label, y * this.width + left, y * this.width + right);
    return area;
  }

  /** A filled polygon (even-odd): pixels whose centre is inside. */
  polygon(points, label) {
    const [xs, ys] = [points.map(([x]) => x), points.map(([, y]) => y)];
    const area = points.length > 2 ? this.cut([Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)]) : null;
    if (!area) return null;
    for (let y = area[1]; y < area[3]; y++) {
      const centre = y + 0.5;
      const crossings = [];
      points.forEach(([ax, ay], index) => {
        const [bx, by] = points[(index + 1) % points.length];
        if (ay <= centre !== by <= centre) crossings.push(ax + ((centre - ay) / (by - ay)) * (bx - ax));
      });
      crossings.sort((a, b) => a - b);
      for (let pair = 0; pair + 1 < crossings.length; pair += 2) {
        const from = Math.max(Math.ceil(crossings[pair] - 0.5), 0);
        const to = Math.min(Math.ceil(crossings[pair + 1] - 0.5), this.width);
        if (to > from) this.labels.fill(label, y * this.width + from, y * this.width + to);
      }
    }
    return area;
  }

  /**
   * Fill the connected area of one label, as it is seen.
   *
   * @param {(at: number) => number} seen what the user sees at a pixel
   */
  fill([x, y], label, seen) {
    const { width, height, labels } = this;
    const [startX, startY] = [Math.floor(x), Math.floor(y)];
    if (startX < 0 || startY < 0 || startX >= width || startY >= height) return null;
    const wanted = seen(startY * width + startX);
    const done = new Uint8Array(width * height);
    const inside = (at) => !done[at] && seen(at) === wanted;
    const rows = [[startX, startY]];
    let area = null;
    while (rows.length) {
      const [atX, atY] = rows.pop();
      const row = atY * width;
      if (!inside(row + atX)) continue;
      let left = atX;
      let right = atX;
      while (left > 0 && inside(row + left - 1)) left--;
      while (right + 1 < width && inside(row + right + 1)) right++;
      done.fill(1, row + left, row + right + 1);
      area = union(area, [left, atY, right + 1, atY + 1]);
      for (const nextY of [atY - 1, atY + 1]) {
        if (nextY < 0 || nextY >= height) continue;
        let open = false;
        for (let nextX = left; nextX <= right; nextX++) {
          const there = inside(nextY * width + nextX);
          if (there && !open) rows.push([nextX, nextY]);
          open = there;
        }
      }
    }
    for (let atY = area[1]; atY < area[3]; atY++) {
      for (let at = atY * width + area[0], end = atY * width + area[2]; at < end; at++) if (done[at]) labels[at] = label;
    }
    return area;
  }

  /** A copy of the labels of a rectangle. */
  read([left, top, right, bottom]) {
    const copy = new Uint8Array((right - left) * (bottom - top));
    for (let y = top; y < bottom; y++) copy.set(this.labels.subarray(y * this.width + left, y * this.width + right), (y - top) * (right - left));
    return copy;
  }

  /** Put such a copy back. */
  put([left, top, right, bottom], copy) {
    for (let y = top; y < bottom; y++) this.labels.set(copy.subarray((y - top) * (right - left), (y - top + 1) * (right - left)), y * this.width + left);
  }
}

export { union };
