/** The looks that both editors share, in the colours of the host's theme. */

const CSS = `
.exb { box-sizing: border-box; display: flex; flex-direction: column; gap: 5px; width: 100%; height: 100%; padding: 5px;
  font: 12px/1.35 Inter, system-ui, sans-serif; color: var(--input-text, #ddd); background: var(--comfy-menu-bg, #353535);
  border: 1px solid var(--border-color, #4e4e4e); border-radius: 8px; user-select: none; -webkit-user-select: none; cursor: default;
  overflow: hidden; }
.exb *, .exb *::before { box-sizing: border-box; }
.exb [hidden] { display: none !important; }
.exb :is(.exb-field, textarea) { font: inherit; color: inherit; background: var(--comfy-input-bg, #222); border: 1px solid transparent;
  border-radius: 5px; outline: none; }
.exb .exb-field { height: 24px; min-width: 0; padding: 0 6px; user-select: text; -webkit-user-select: text; }
.exb .exb-field:disabled { opacity: 0.4; }
.exb :is(input, textarea, select):focus-visible { outline: 2px solid var(--p-primary-color, #60a5fa); outline-offset: 0; }
.exb-tools { display: flex; flex-wrap: wrap; gap: 3px; align-items: center; }
.exb-tool { position: relative; display: inline-flex; flex: none; align-items: center; justify-content: center; gap: 4px; height: 24px;
  min-width: 26px; padding: 0 5px; background: var(--comfy-input-bg, #222); border: 1px solid transparent; border-radius: 5px; }
.exb-tool .exb-caption:empty { display: none; }
.exb-tool:has(input:disabled) { opacity: 0.35; }
.exb-tool:has(input:hover:not(:disabled)) { border-color: var(--border-color, #4e4e4e); filter: brightness(1.25); }
.exb-tool:has(input[aria-pressed="true"]) { color: var(--p-primary-color, #60a5fa); border-color: currentColor; }
.exb-tool svg { width: 14px; height: 14px; fill: none; stroke: currentColor; stroke-width: 1.5; stroke-linecap: round; stroke-linejoin: round; }
.exb .exb-tool input { position: absolute; inset: -1px; margin: 0; padding: 0; background: none; border: 0; border-radius: 5px; cursor: pointer; }
.exb .exb-tool input:disabled { cursor: default; }
.exb-space { flex: 1; }
.exb-status { flex: none; min-height: 16px; padding: 0 2px; color: var(--descrip-text, #999); overflow-wrap: anywhere; user-select: text; }
.exb-status.exb-error { color: var(--error-text, #ff4444); }
@media (pointer: coarse) {
  .exb-tool, .exb .exb-field { height: 32px; }
  .exb-tool { min-width: 34px; }
}
`;

/** Add a style sheet, once a page. */
export function addStyle(id, css) {
  for (const [name, text] of [["exemplary-base-style", CSS], [id, css]]) {
    if (document.getElementById(name)) continue;
    const style = document.createElement("style");
    style.id = name;
    style.textContent = text;
    document.head.append(style);
  }
}
