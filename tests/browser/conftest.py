"""A real Chromium on a live ComfyUI. A missing browser fails in CI and skips elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from pack.devtools.client import Client
from pack.tests import live

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


def chromium() -> str | None:
    """The path of an installed Chromium, Chrome or Edge; EXEMPLARY_CHROMIUM names another one."""
    named = os.environ.get("EXEMPLARY_CHROMIUM")
    found = (
        [named]
        if named
        else [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")]
    )
    if sys.platform == "win32":
        roots = [os.environ.get(name, "") for name in ("ProgramFiles", "ProgramFiles(x86)", "LocalAppData")]
        found += [
            str(Path(root, part))
            for root in roots
            for part in (r"Google\Chrome\Application\chrome.exe", r"Microsoft\Edge\Application\msedge.exe")
        ]
    if sys.platform == "darwin":
        found.append("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
    return next((path for path in found if path and Path(path).exists()), None)


@pytest.fixture(scope="session")
def comfyui():
    """The running server."""
    with live.comfyui("browser") as running:
        yield running


@pytest.fixture(scope="session")
def object_info(comfyui):
    """What the server says about its nodes."""
    return Client(comfyui.url).object_info()


@pytest.fixture(scope="session")
def playwright():
    """Playwright's driver."""
    sync_api = (
        pytest.importorskip("playwright.sync_api") if not os.environ.get("CI") else __import__("playwright.sync_api").sync_api
    )
    with sync_api.sync_playwright() as running:
        yield running


@pytest.fixture(scope="session")
def browser(playwright, tmp_path_factory):
    """A browser with a profile of its own."""
    path = chromium()
    if path is None:
        message = "No Chromium was found. Install it (Debian: apt-get install chromium) or name one in EXEMPLARY_CHROMIUM."
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    context = playwright.chromium.launch_persistent_context(
        str(tmp_path_factory.mktemp("profile")),
        executable_path=path,
        headless=True,
        args=FLAGS,
        viewport={"width": 1600, "height": 1000},
    )
    yield context
    context.close()
