"""`demo`: every example workflow through a real ComfyUI as a user's client would, the images, a contact sheet and a report.

An example says which of its images were made without our node by the name of its Save Image: a `filename_prefix` that ends in
"without" goes to the right of the sheet. `extra.exemplary` in the workflow may hold a `title` and a `caption`, and what it `needs` that does
not ship (files to download): then it is only named here.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from . import figures, report, server
from .client import Client, Run
from .environment import Environment
from .hosts import Host
from .places import EXAMPLES, OUTPUT, ROOT, examples
from .say import Trouble, say
from .workflow import described, needs, to_prompt


@dataclass
class Row:
    """One example on the sheet and in the report. Images are paths below `output/`."""

    name: str
    title: str
    caption: str
    left: list[str] = field(default_factory=list)
    right: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    seconds: float = 0.0
    error: str | None = None


def demo(environment: Environment, host: Host) -> int:
    """Run it all; 0 when every example ran and every figure was measured."""
    found = examples()
    if not found:
        raise Trouble(f"There are no example workflows in {EXAMPLES.name}/, so there is nothing to show.")
    started = time.monotonic()
    shutil.rmtree(OUTPUT / "demo", ignore_errors=True)
    OUTPUT.mkdir(exist_ok=True)
    say(f"Starting ComfyUI {host.version} on the CPU")
    with server.running(environment, host, "demo") as running:
        say(f"  It answers at {running.url}")
        rows = [_run(path, Client(running.url), running) for path in found if not needs(path)]
        failed = [row for row in rows if row.error]
        if failed:
            shutil.copyfile(running.log, OUTPUT / "host.log")
            say(f"  The host's log is in {OUTPUT / 'host.log'}.")
    records, complete = figures.for_demo(environment, host)
    _sheet(environment, rows)
    page = OUTPUT / "report.html"
    page.write_text(report.html(rows, records, host.version), encoding="utf-8")
    for path in filter(needs, found):
        say(f"  {path.stem}: not run, it needs {', '.join(needs(path))}")
    say(f"\n{len(rows) - len(failed)} of {len(rows)} examples ran, in {time.monotonic() - started:.0f} s.")
    say(f"  contact sheet  {OUTPUT / 'demo.jpg'}\n  report         {page}\n  images       {OUTPUT / 'demo'}")
    return int(bool(failed) or not complete)


def _run(path: Path, client: Client, running: server.Server) -> Row:
    workflow = json.loads(path.read_text(encoding="utf-8"))
    about = described(workflow)
    row = Row(path.stem, about.get("title") or path.stem.replace("_", " ").capitalize(), about.get("caption") or "")
    say(f"  {row.title}")
    try:
        prompt = to_prompt(workflow, client.object_info())
        run = client.run(prompt, on_progress=_Progress(), alive=running.alive)
    except Trouble as trouble:
        row.error = str(trouble)
    else:
        row.seconds = run.seconds
        if run.error:
            row.error = f"{run.error.get('node_type')}: {run.error.get('exception_message', '').strip()}"
        row.texts = [text for _, text in run.texts()]
        _keep(row, run, prompt, client)
    say(f"    {'FAILED: ' + row.error if row.error else f'{len(row.left) + len(row.right)} pictures'}  ({row.seconds:.1f} s)")
    return row


def _keep(row: Row, run: Run, prompt: dict, client: Client) -> None:
    """Fetch what was saved; previews stay on the server unless nothing was saved."""
    folder = OUTPUT / "demo" / row.name
    pictures = run.images()
    saved = [item for item in pictures if item[1].get("type") == "output"] or pictures
    for number, (node, image) in enumerate(saved):
        folder.mkdir(parents=True, exist_ok=True)
        prefix = str(prompt.get(node, {}).get("inputs", {}).get("filename_prefix", ""))
        without = prefix.rstrip("/_- ").endswith("without")
        target = folder / f"{number:02}_{Path(image['filename']).name}"
        target.write_bytes(client.view(image))
        (row.right if without else row.left).append(target.relative_to(OUTPUT).as_posix())
    row.left.sort(key=lambda path: "_with_" not in path)  # the result first: the sheet shows a few of many


class _Progress:
    """Says a node's progress in quarters, so that a log stays readable."""

    def __init__(self) -> None:
        self._said: tuple[str, int] = ("", 0)

    def __call__(self, node: str, done: float) -> None:
        quarter = (node, int(done * 4))
        if quarter != self._said and quarter[1]:
            self._said = quarter
            say(f"    {node} {25 * quarter[1]} %")


def _sheet(environment: Environment, rows: list[Row]) -> None:
    """Let Pillow, which lives in the environment, draw the contact sheet."""
    sheet = [
        {"title": row.title, "caption": row.caption, "left": row.left, "right": row.right, "error": row.error} for row in rows
    ]
    command = [str(environment.python), str(ROOT / "devtools" / "sheet.py"), str(OUTPUT), str(OUTPUT / "demo.jpg")]
    done = subprocess.run(command, input=json.dumps(sheet), text=True, capture_output=True, check=False)
    if done.returncode:
        raise Trouble(f"The contact sheet could not be drawn:\n{done.stderr.strip()}")
