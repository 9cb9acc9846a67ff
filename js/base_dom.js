/** What both editors are built of: elements, buttons with icons, number fields. Texts are only ever set as text, never as HTML. */

const SVG = "http://www.w3.org/2000/svg";

/** Paths of icons, drawn as lines in a square of 16 units. */
const ICONS = {
  undo: "M3 6h6.5a3.5 3.5 0 0 1 0 7H6M3 6l3-3M3 6l3 3",
  redo: "M13 6H6.5a3.5 3.5 0 0 0 0 7H10M13 6l-3-3M13 6l-3 3",
  grid: "M2.5 2.5h11v11h-11zM6.2 2.5v11M9.8 2.5v11M2.5 6.2h11M2.5 9.8h11",
  image: "M2.5 3h11v10h-11zM2.5 11l3.5-3.5 3 3 2-2 2.5 2.5M10.5 6h.01",
  noImage: "M2.5 3h11v10h-11zM2 14L14 2",
  imageSize: "M5.5 5.5h5v5h-5zM2.5 5V2.5H5M11 2.5h2.5V5M13.5 11v2.5H11M5 13.5H2.5V11",
  load: "M8 10.5v-8M5 5.5l3-3 3 3M2.5 10.5v3h11v-3",
  save: "M8 2.5v8M5 7.5l3 3 3-3M2.5 10.5v3h11v-3",
  text: "M6.5 2.5c-2.2 0-1.5 1.5-1.5 3S4 8 2.5 8C4 8 5 9 5 10.5S4.3 13.5 6.5 13.5M9.5 2.5c2.2 0 1.5 1.5 1.5 3S12 8 13.5 8C12 8 11 9 11 10.5s.7 3-1.5 3",
  copy: "M6 6h7.5v7.5H6zM10 6V2.5H2.5V10H6",
  remove: "M4 4l8 8M12 4l-8 8",
  clear: "M2.5 4h11M6 4V2.5h4V4M4 4l.7 9.5h6.6L12 4M6.7 6.5v4.5M9.3 6.5v4.5",
  adopt: "M2.5 8h7M6.5 5l3 3-3 3M8 2.5h5.5v11H8",
  brush: "M13.5 2.5L7.5 8.5M5.5 8.2c1 0 2.3 1.3 2.3 2.3C7.8 12.6 6 13.5 2.5 13.5c1.2-1 .8-2.3 1.2-3.6.3-1 .9-1.7 1.8-1.7z",
  erase: "M9 3l4.5 4.5-5.5 5.5H5L2.5 10.5zM6 6l4.5 4.5M8 13h5.5",
  fill: "M7 2.5l5.5 5.5-4.5 4.5L3 7.5l5-5M3.5 8h8M13.5 10.5c.8 1.2 1 1.7 1 2.1a1 1 0 0 1-2 0c0-.4.2-.9 1-2.1z",
  polygon: "M8 2.5l5.5 4-2 7h-7l-2-7z",
  rectangle: "M2.5 3.5h11v9h-11z",
  pick: "M9.5 4L12 6.5M11 2.5a1.8 1.8 0 0 1 2.5 2.5L11.8 6.7 9.3 4.2zM9.3 5.5l-6 6-.8 2 2-.8 6-6",
  fit: "M2.5 6V2.5H6M10 2.5h3.5V6M13.5 10v3.5H10M6 13.5H2.5V10",
  add: "M8 3v10M3 8h10",
  edit: "M10.5 3l2.5 2.5-7.5 7.5-3 .5.5-3z",
  opacity: "M8 2.5c2.5 3 4 5 4 7a4 4 0 0 1-8 0c0-2 1.5-4 4-7zM8 5.5v7.5",
};

/** An element with a class, attributes and children. */
export function element(tag, name, attributes = {}, children = []) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function drawIcon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/**
 * A button: an icon or a text, and over it an <input type="button">. Inputs are the one kind of element whose Ctrl+Z the host leaves alone (it
 * listens on the window in the capture phase and asks document.activeElement). A click with the mouse does not move the keyboard's focus.
 *
 * @param {string} name class of the button
 * @param {{icon?: string, text?: string, label?: string, act?: () => void}} options
 */
export function tool(name, { icon, text, label, act }) {
  const input = element("input", "", { type: "button", value: "" });
  const holder = element("span", `exb-tool ${name}`);
  if (icon) holder.append(drawIcon(icon));
  const caption = element("span", "exb-caption", { "aria-hidden": "true" });
  holder.append(caption, input);
  input.addEventListener("pointerdown", (event) => event.preventDefault());
  input.addEventListener("mousedown", (event) => event.preventDefault());
  if (act) input.addEventListener("click", () => act());
  const made = { holder, input, set };
  /** What may change later: the label for eyes and ears, the text shown, whether it is pressed, disabled or hidden. */
  function set({ label: said, text: shown, pressed, disabled, hidden }) {
    if (said !== undefined && input.title !== said) {
      input.setAttribute("aria-label", said);
      input.title = said;
    }
    if (shown !== undefined && caption.textContent !== shown) caption.textContent = shown;
    if (pressed !== undefined) input.setAttribute("aria-pressed", String(pressed));
    if (disabled !== undefined) input.disabled = disabled;
    if (hidden !== undefined) holder.hidden = hidden;
  }
  set({ label, text });
  return made;
}

/** A hidden <input type="file"> that hands over the file that was chosen. */
export function fileInput(accept, load) {
  const input = element("input", "", { type: "file", accept, hidden: "", tabindex: "-1" });
  input.addEventListener("change", () => {
    if (input.files[0]) load(input.files[0]);
    input.value = "";
  });
  return input;
}

/** A value into a field, without moving the caret of somebody who types there. */
export function write(field, value) {
  if (field.value !== value && document.activeElement !== field) field.value = value;
}

/** Offer a file for download. */
export function download(name, parts, type) {
  const address = URL.createObjectURL(new Blob(parts, { type }));
  element("a", "", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/** A value that this browser remembers; one without storage forgets it. */
export function stored(key, fallback, value) {
  try {
    if (value !== undefined) localStorage.setItem(key, String(value));
    return localStorage.getItem(key) ?? fallback;
  } catch {
    return fallback;
  }
}
