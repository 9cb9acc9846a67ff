/** The layout editor's looks; what it shares with the painter is in base_style.js. */

import { addStyle as add } from "./base_style.js";

const CSS = `
.exl { min-height: 360px; }
.exl-stage { position: relative; flex: 3 1 180px; min-height: 150px; container-type: size; display: grid; place-items: center;
  background: var(--bg-color, #202020); border-radius: 5px; overflow: hidden; }
.exl-picture { position: relative; width: min(100cqw - 10px, (100cqh - 10px) * var(--exl-ratio, 1)); aspect-ratio: var(--exl-ratio, 1);
  background: var(--comfy-input-bg, #222); box-shadow: 0 0 0 1px var(--border-color, #4e4e4e); cursor: crosshair; touch-action: none;
  --exl-line: color-mix(in srgb, var(--input-text, #ddd) 9%, transparent); }
.exl-image { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: cover; opacity: 0.75; pointer-events: none; }
.exl-grid { position: absolute; inset: 0; pointer-events: none; }
.exl .exl-sink { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; padding: 0; border: 0; background: none; cursor: inherit;
  pointer-events: none; }
.exl-hint { position: absolute; inset: 0; display: grid; place-items: center; padding: 12%; text-align: center; white-space: pre-line;
  color: var(--descrip-text, #999); pointer-events: none; }
.exl-tags { position: absolute; inset: 0; z-index: 99999; pointer-events: none; }
.exl-box, .exl-tag { position: absolute; }
.exl-box .exl-button { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; padding: 0; cursor: move; border-radius: 2px;
  box-shadow: 0 0 0 1px rgb(0 0 0 / 0.3); border: 1.5px solid rgb(var(--exl-colour)); background: rgb(var(--exl-colour) / calc(0.08 + 0.16 * var(--exl-strength, 1))); }
.exl-box.exl-selected .exl-button { border-width: 2px; background: rgb(var(--exl-colour) / calc(0.16 + 0.2 * var(--exl-strength, 1))); }
.exl-box.exl-wordless .exl-button { border-style: dashed; }
.exl-label { position: absolute; left: 0; top: 0; max-width: 100%; padding: 0 4px; max-height: 100%; overflow: hidden;
  display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; pointer-events: none; font-size: 11px; font-weight: 500; color: #16181d; background: rgb(var(--exl-colour));
  border-radius: 2px 0 4px 0; }
.exl-wordless .exl-label { font-style: italic; }
.exl-rubber { position: absolute; display: none; z-index: 100000; border: 1.5px dashed var(--input-text, #ddd);
  background: rgb(255 255 255 / 0.08); pointer-events: none; }
.exl-rubber.exl-on { display: block; }
.exl-handles { position: absolute; z-index: 100001; pointer-events: none; }
.exl-handle { position: absolute; width: 16px; height: 16px; margin: -8px; pointer-events: auto; }
.exl-handle::before { content: ""; position: absolute; inset: 4px; background: #fff; border: 1.5px solid rgb(var(--exl-colour)); border-radius: 2px; }
.exl-nw { left: 0; top: 0; cursor: nwse-resize; } .exl-n { left: 50%; top: 0; cursor: ns-resize; }
.exl-ne { left: 100%; top: 0; cursor: nesw-resize; } .exl-e { left: 100%; top: 50%; cursor: ew-resize; }
.exl-se { left: 100%; top: 100%; cursor: nwse-resize; } .exl-s { left: 50%; top: 100%; cursor: ns-resize; }
.exl-sw { left: 0; top: 100%; cursor: nesw-resize; } .exl-w { left: 0; top: 50%; cursor: ew-resize; }
.exl .exl-field { position: absolute; z-index: 100002; padding: 2px 5px; resize: none; user-select: text; cursor: text;
  border: 2px solid rgb(var(--exl-colour)); background: var(--comfy-input-bg, #222); }
.exl-ghost { position: absolute; border: 2px dashed rgb(var(--exl-colour)); opacity: 0.9; pointer-events: none; border-radius: 2px; }
.exl-fields { display: flex; gap: 8px; align-items: center; color: var(--descrip-text, #999); }
.exl-fields label { display: flex; flex: 1; gap: 4px; align-items: center; min-width: 0; }
.exl-fields .exb-field { flex: 1; width: 0; padding-right: 1px; color: var(--input-text, #ddd); }
/* Its rows do not ask for height: the list scrolls inside of the node and never makes the node grow. */
.exl-list { flex: 1 1 92px; min-height: 58px; max-height: calc(2px + var(--exl-rows, 1) * var(--exl-row)); contain: size; margin: 0; padding: 1px;
  overflow-y: auto; list-style: none; display: flex; flex-direction: column; gap: 3px; scrollbar-width: thin; touch-action: pan-y;
  --exl-row: 27px; }
.exl-list:empty { display: none; }
.exl-row { flex: none; display: flex; gap: 3px; align-items: center; border-radius: 5px; }
.exl-row.exl-selected { box-shadow: 0 0 0 1px rgb(var(--exl-colour)); }
.exl-row .exl-grip { color: #16181d; background: rgb(var(--exl-colour)); font-weight: 600; }
.exl .exl-grip input { cursor: grab; touch-action: none; }
.exl .exl-grip input:active { cursor: grabbing; }
.exl-row .exl-words { flex: 1; }
.exl-row .exb-field.exl-wordless { border-color: var(--error-text, #ff4444); }
.exl-row .exl-strength { width: 52px; padding-right: 1px; }
.exl-text { flex: 1; min-height: 120px; padding: 6px; resize: none; white-space: pre; user-select: text;
  font: 11px/1.4 ui-monospace, monospace !important; }
@media (pointer: coarse) {
  .exl-handle { width: 30px; height: 30px; margin: -15px; }
  .exl-handle::before { inset: 9px; }
  .exl-list { --exl-row: 35px; }
}
`;

/** Once a page. */
export const addStyle = () => add("exemplary-layout-style", CSS);
