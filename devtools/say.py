"""dev.py's messages: one line per step, and errors as a sentence."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator


class Trouble(Exception):
    """Something the user can mend. The message is one or two full sentences: what was found, and what to do."""


def say(text: str = "") -> None:
    """Print one line at once, on any console."""
    encoding = sys.stdout.encoding or "ascii"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding) + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def step(text: str) -> Iterator[None]:
    """Say what is being done, tick while it lasts, and say how long it took."""
    started = time.monotonic()
    done = threading.Event()
    live = sys.stdout.isatty()

    def tick() -> None:
        while not done.wait(1.0):
            sys.stdout.write(f"\r  {text} ... {time.monotonic() - started:.0f} s ")
            sys.stdout.flush()

    sys.stdout.write(f"  {text} ... ")
    sys.stdout.flush()
    ticker = threading.Thread(target=tick, daemon=True)
    if live:
        ticker.start()
    outcome = "failed"
    try:
        yield
        outcome = "done"
    finally:
        done.set()
        if live:
            ticker.join()
            sys.stdout.write(f"\r  {text} ... ")
        say(f"{outcome} ({time.monotonic() - started:.1f} s)")
