/**
 * Label images as PNG files: 8-bit grayscale or palette, read and written without loss and without a canvas (browsers that protect against
 * fingerprinting change what a canvas returns). Writing is synchronous, so that the widget's value is never behind the picture.
 */

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const PREFIX = "data:image/png;base64,";
const MOST_SIDE = 8192;
const LONGEST = 258; // of a match in deflate

const CRC = Uint32Array.from({ length: 256 }, (_, index) => {
  let value = index;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value >>> 0;
});

function crc(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = CRC[(value ^ byte) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

function adler(bytes) {
  let a = 1;
  let b = 0;
  for (let start = 0; start < bytes.length; start += 3800) {
    for (let at = start; at < Math.min(start + 3800, bytes.length); at++) b += a += bytes[at];
    a %= 65521;
    b %= 65521;
  }
  return ((b << 16) | a) >>> 0;
}

/** [first length of the code, extra bits] of deflate's length codes 257 to 285. */
const LENGTHS = [];
for (let code = 0, length = 3; code < 28; code++) {
  const extra = code < 8 ? 0 : (code >> 2) - 1;
  LENGTHS.push([length, extra]);
  length += 1 << extra;
}
LENGTHS.push([LONGEST, 0]);

const reversed = (value, count) => {
  let out = 0;
  for (let bit = 0; bit < count; bit++) out |= ((value >> bit) & 1) << (count - 1 - bit);
  return out;
};

/** The fixed Huffman code of deflate: [bits, count] of every symbol, first bit lowest. */
const SYMBOLS = Array.from({ length: 286 }, (_, symbol) => {
  if (symbol < 144) return [reversed(48 + symbol, 8), 8];
  if (symbol < 256) return [reversed(400 + symbol - 144, 9), 9];
  if (symbol < 280) return [reversed(symbol - 256, 7), 7];
  return [reversed(192 + symbol - 280, 8), 8];
});

/** The longest match code for each length. */
const LENGTH_CODE = new Uint8Array(LONGEST + 1);
LENGTHS.forEach(([first, extra], code) => LENGTH_CODE.fill(code, first, Math.min(first + (1 << extra), LONGEST + 1)));
LENGTH_CODE[LONGEST] = 28;

/** zlib data in which runs of one byte are matches at distance 1: enough for label images, whose rows mostly repeat. */
function compress(bytes) {
  let out = new Uint8Array(1024 + (bytes.length >> 4));
  let size = 0;
  let hold = 0;
  let held = 0;
  const put = (bits, count) => {
    hold |= bits << held;
    held += count;
    while (held >= 8) {
      if (size === out.length) {
        const larger = new Uint8Array(out.length * 2);
        larger.set(out);
        out = larger;
      }
      out[size++] = hold & 255;
      hold >>>= 8;
      held -= 8;
    }
  };
  const symbol = (number) => put(SYMBOLS[number][0], SYMBOLS[number][1]);
  put(0x78, 8);
  put(0x9c, 8);
  put(0b011, 3); // the last block, in the fixed code
  for (let at = 0; at < bytes.length; ) {
    const byte = bytes[at];
    let end = at + 1;
    while (end < bytes.length && bytes[end] === byte) end++;
    symbol(byte);
    let left = end - at - 1;
    while (left >= 3) {
      const length = Math.min(left, LONGEST);
      const code = LENGTH_CODE[length];
      symbol(257 + code);
      put(length - LENGTHS[code][0], LENGTHS[code][1]);
      put(0, 5); // distance 1
      left -= length;
    }
    for (; left > 0; left--) symbol(byte);
    at = end;
  }
  symbol(256);
  if (held) put(0, 8 - held);
  const check = adler(bytes);
  for (const shift of [24, 16, 8, 0]) put((check >>> shift) & 255, 8);
  return out.subarray(0, size);
}

function chunk(name, data) {
  const bytes = new Uint8Array(12 + data.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  for (let at = 0; at < 4; at++) bytes[4 + at] = name.charCodeAt(at);
  bytes.set(data, 8);
  view.setUint32(8 + data.length, crc(bytes.subarray(4, 8 + data.length)));
  return bytes;
}

/**
 * A PNG file of labels.
 *
 * @param {Uint8Array} labels width * height values
 * @param {number[][] | null} colours [r, g, b] of each label: a palette image; null: grayscale
 * @returns {Uint8Array}
 */
export function encodePng(labels, width, height, colours = null) {
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set([8, colours ? 3 : 0, 0, 0, 0], 8);
  const rows = new Uint8Array((width + 1) * height);
  for (let y = 0, to = 0; y < height; y++) {
    const from = y * width;
    rows[to++] = y ? 2 : 0; // each row less the one above
    for (let x = 0; x < width; x++) rows[to++] = y ? labels[from + x] - labels[from + x - width] : labels[from + x];
  }
  const parts = [Uint8Array.from(SIGNATURE), chunk("IHDR", header)];
  if (colours) parts.push(chunk("PLTE", Uint8Array.from(colours.flat())));
  parts.push(chunk("IDAT", compress(rows)), chunk("IEND", new Uint8Array()));
  const file = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    file.set(part, at);
    at += part.length;
  }
  return file;
}

/**
 * The labels of an 8-bit grayscale or palette PNG that is not interlaced.
 *
 * @param {Uint8Array} bytes
 * @returns {Promise<{width: number, height: number, labels: Uint8Array}>} rejects with an Error for every other file
 */
export async function decodePng(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < 33 || SIGNATURE.some((byte, at) => bytes[at] !== byte)) throw new Error("not a PNG file");
  const [width, height] = [view.getUint32(16), view.getUint32(20)];
  const [depth, kind, , , interlaced] = bytes.subarray(24, 29);
  if (!(width >= 1 && width <= MOST_SIDE && height >= 1 && height <= MOST_SIDE)) throw new Error(`${width} x ${height} pixels`);
  if (depth !== 8 || (kind !== 0 && kind !== 3) || interlaced) throw new Error(`PNG type ${kind}, ${depth} bits`);
  const data = [];
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    if (at + 12 + length > bytes.length) throw new Error("cut off");
    if (String.fromCharCode(...bytes.subarray(at + 4, at + 8)) === "IDAT") data.push(bytes.subarray(at + 8, at + 8 + length));
    at += 12 + length;
  }
  const rows = await inflate(data, (width + 1) * height);
  return { width, height, labels: unfilter(rows, width, height) };
}

/** Exactly `size` bytes out of zlib data: more are not read, so that a small file cannot fill the memory. */
async function inflate(parts, size) {
  const out = new Uint8Array(size);
  let filled = 0;
  const reader = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  while (filled < size) {
    const { done, value } = await reader.read();
    if (done) throw new Error("cut off");
    out.set(value.subarray(0, size - filled), filled);
    filled += value.length;
  }
  await reader.cancel();
  return out;
}

function unfilter(rows, width, height) {
  const labels = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    const filter = rows[y * (width + 1)];
    if (filter > 4) throw new Error("damaged");
    const from = y * (width + 1) + 1;
    const to = y * width;
    for (let x = 0; x < width; x++) {
      const left = x ? labels[to + x - 1] : 0;
      const up = y ? labels[to + x - width] : 0;
      const corner = x && y ? labels[to + x - width - 1] : 0;
      let guess = 0;
      if (filter === 1) guess = left;
      else if (filter === 2) guess = up;
      else if (filter === 3) guess = (left + up) >> 1;
      else if (filter === 4) guess = paeth(left, up, corner);
      labels[to + x] = rows[from + x] + guess;
    }
  }
  return labels;
}

function paeth(left, up, corner) {
  const a = Math.abs(up - corner);
  const b = Math.abs(left - corner);
  const c = Math.abs(left + up - 2 * corner);
  if (a <= b && a <= c) return left;
  return b <= c ? up : corner;
}

/** A file as a data URL. */
export function toDataUrl(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return PREFIX + btoa(text);
}

/** The bytes of a data URL, or of base64 alone; throws an Error for anything else. */
export function fromDataUrl(text) {
  const data = text.trim();
  const binary = atob(data.startsWith(PREFIX) ? data.slice(PREFIX.length) : data);
  return Uint8Array.from(binary, (letter) => letter.charCodeAt(0));
}
