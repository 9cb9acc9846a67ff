"""The demo's report: the measured figures and the images on one page that needs nothing but itself and its folder."""

from __future__ import annotations

import html as text
from typing import TYPE_CHECKING

from .figures import shown

if TYPE_CHECKING:
    from .demo import Row

STYLE = """
body { margin: 0 auto; max-width: 1000px; padding: 40px 24px; font: 16px/1.5 system-ui, sans-serif; color: #1c1e22; background: #faf9f6 }
td, th { text-align: left; padding: 7px 12px 7px 0; border-bottom: 1px solid #dedcd6; vertical-align: top }
h1 { font-size: 34px; margin: 0 } h2 { margin: 40px 0 4px; font-size: 23px } p { margin: 4px 0 14px; color: #70747c }
table { border-collapse: collapse; width: 100% }
td.value { font-weight: 600; white-space: nowrap } .missed { color: #aa1e1e }
.sides { display: flex; flex-wrap: wrap; gap: 28px } figure { margin: 0 } figcaption { color: #70747c; font-size: 14px }
img { width: 256px; image-rendering: auto; border: 1px solid #dedcd6; margin: 4px 6px 4px 0 } pre { white-space: pre-wrap; color: #70747c }
"""


def html(rows: list[Row], records: list[dict], version: str) -> str:
    """The page."""
    parts = ["<!doctype html><html lang=en><meta charset=utf-8><title>Exemplary: demo</title>", f"<style>{STYLE}</style>"]
    parts.append(f"<h1>Exemplary</h1><p>Every example workflow, run in ComfyUI {text.escape(version)} on the CPU.</p>")
    parts += [_table(record) for record in records]
    parts += [_example(row) for row in rows]
    return "\n".join(parts) + "\n</html>\n"


def _table(record: dict) -> str:
    kind = "Quick measurement" if record["quick"] else "Measurement"
    how = f"{kind} in {record['seconds']:.0f} s, ComfyUI {record['host']}, {record['machine']}."
    lines = [
        f"<h2>Measured: {text.escape(record['module'].rpartition('.')[2].replace('_', ' '))}</h2><p>{text.escape(how)}</p><table>"
    ]
    lines.append("<tr><th>figure<th>value<th>asked<th>measured on")
    for figure in record["figures"]:
        missed = "" if figure.get("ok", True) else " missed"
        cells = [text.escape(str(figure.get(name, ""))) for name in ("name", "target", "note")]
        lines.append(f'<tr><td>{cells[0]}<td class="value{missed}">{text.escape(shown(figure))}<td>{cells[1]}<td>{cells[2]}')
    return "\n".join([*lines, "</table>"])


def _example(row: Row) -> str:
    lines = [f"<h2>{text.escape(row.title)}</h2><p>{text.escape(row.caption)} ({row.seconds:.1f} s)</p>"]
    if row.error:
        return "\n".join([*lines, f'<pre class="missed">{text.escape(row.error)}</pre>'])
    lines.append("<div class=sides>")
    for label, pictures in (("with the node" if row.right else "", row.left), ("same prompt and seed, without it", row.right)):
        if pictures:
            images = "".join(f'<img src="{text.escape(name)}" alt="{text.escape(row.title)}">' for name in pictures)
            lines.append(f"<figure>{images}<figcaption>{label}</figcaption></figure>")
    lines.append("</div>")
    lines += [f"<pre>{text.escape(shown_text)}</pre>" for shown_text in row.texts]
    return "\n".join(lines)
