/** The painter's looks; what it shares with the layout editor is in base_style.js. */

import { addStyle as add } from "./base_style.js";

const CSS = `
.exp { min-height: 440px; container-type: inline-size; }
.exp-body { flex: 1 1 320px; min-height: 300px; display: flex; flex-direction: column; gap: 5px; }
.exp-stage { position: relative; flex: 3 1 190px; min-height: 170px; min-width: 0; contain: strict; overflow: hidden; touch-action: none;
  background-color: var(--bg-color, #202020); border-radius: 5px; cursor: crosshair; }
.exp-stage.exp-circle { cursor: none; }
.exp-stage.exp-panning { cursor: grabbing; }
.exp-sheet { position: absolute; box-shadow: 0 0 0 1px var(--border-color, #4e4e4e); background:
  repeating-conic-gradient(rgb(127 127 127 / 0.28) 0 25%, rgb(127 127 127 / 0.12) 0 50%) 0 0 / 16px 16px; }
.exp-image, .exp-canvas, .exp-overlay { position: absolute; inset: 0; width: 100%; height: 100%; pointer-events: none; }
.exp-image { object-fit: cover; }
.exp-canvas { image-rendering: pixelated; opacity: var(--exp-opacity, 1); }
.exp-overlay { overflow: visible; fill: none; }
.exp-dark { stroke: rgb(0 0 0 / 0.8); stroke-width: 3px; }
.exp-light { stroke: #fff; stroke-width: 1.2px; }
.exb .exp-sink { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; padding: 0; border: 0; background: none;
  pointer-events: none; border-radius: 5px; }
.exb .exp-sink:focus-visible { outline-offset: -2px; }
.exp-hint { position: absolute; inset: auto 0 0; padding: 6px 10px; text-align: center; white-space: pre-line; pointer-events: none;
  color: #fff; background: rgb(0 0 0 / 0.62); }
.exp-range { display: inline-flex; align-items: center; gap: 5px; height: 24px; padding: 0 6px; border-radius: 5px;
  background: var(--comfy-input-bg, #222); }
.exp-range svg { width: 14px; height: 14px; fill: none; stroke: currentColor; stroke-width: 1.5; }
.exp-range input { width: 58px; margin: 0; accent-color: var(--p-primary-color, #60a5fa); }
.exp-range output { min-width: 26px; text-align: right; font-variant-numeric: tabular-nums; }
.exp-classes { flex: 2 1 120px; min-height: 104px; min-width: 0; display: flex; flex-direction: column; gap: 5px; }
.exp-pick { display: flex; gap: 4px; align-items: center; }
.exp-pick > select { max-width: 45%; }
.exp-pick > .exp-search { flex: 1; width: 0; }
.exp-list { flex: 1 1 60px; min-height: 52px; contain: size; overflow-y: auto; scrollbar-width: thin; display: flex; flex-wrap: wrap; gap: 4px;
  align-content: flex-start; padding: 2px; touch-action: pan-y; }
.exp-list .exb-tool { gap: 6px; padding: 0 8px 0 5px; max-width: 100%; justify-content: flex-start; }
.exp-list .exb-caption { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.exp-list .exb-tool:has(input[aria-pressed="true"]) { color: inherit; border-color: var(--p-primary-color, #60a5fa);
  box-shadow: 0 0 0 1px var(--p-primary-color, #60a5fa); }
.exp-swatch { flex: none; width: 14px; height: 14px; border-radius: 3px; background: var(--exp-colour);
  box-shadow: inset 0 0 0 1px rgb(127 127 127 / 0.55); }
.exp-share { color: var(--descrip-text, #999); font-size: 11px; font-variant-numeric: tabular-nums; }
.exp-edit { display: flex; gap: 4px; align-items: center; }
.exp-edit > .exb-field { flex: 1; width: 0; }
.exp-edit > input[type="color"] { flex: none; width: 32px; height: 24px; padding: 2px; background: var(--comfy-input-bg, #222); border: 0;
  border-radius: 5px; cursor: pointer; }
.exb-tool:has(> .exp-checked[aria-pressed="true"]) { background: var(--p-primary-color, #60a5fa); }
@container (min-width: 620px) {
  .exp-body { flex-direction: row; }
  .exp-classes { flex: 0 0 232px; }
}
@media (pointer: coarse) {
  .exp-range { height: 32px; }
  .exp-range input { width: 96px; }
}
`;

/** Once a page. */
export const addStyle = () => add("exemplary-painter-style", CSS);
