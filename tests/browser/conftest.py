"""A real Chromium on a live ComfyUI. A missing browser fails in CI and skips elsewhere."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from pack.devtools.client import Client
from pack.tests import live

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


#: What the host's page says on a machine without internet. Everything else that is not ours is found by a page without the pack.
OFFLINE = re.compile(
    r"net::ERR_(INTERNET_DISCONNECTED|NAME_NOT_RESOLVED|CONNECTION_\w+|TUNNEL\w*|PROXY\w*|TIMED_OUT|ADDRESS_UNREACHABLE|FAILED)"
    r"|Failed to load resource: the server responded with a status of 404"  # names no address; ours are checked apart
    r"|https://(api\.comfy\.org|api\.github\.com|raw\.githubusercontent\.com|fonts\.\w+|[\w.-]+\.(sentry\.io|posthog\.com|googleapis\.com))"
)

#: Puts a node of the host into a subgraph, goes in, and loads the whole again.
SUBGRAPH = """async () => {
    const { app } = window;
    await app.loadGraphData({ version: 0.4, last_node_id: 0, last_link_id: 0, nodes: [], links: [], groups: [] });
    const latent = window.LiteGraph.createNode("EmptyLatentImage");
    app.graph.add(latent);
    const { node } = app.graph.convertToSubgraph(new Set([latent]));
    app.canvas.openSubgraph(node.subgraph, node);
    await new Promise(done => setTimeout(done, 500));
    await app.loadGraphData((app.rootGraph ?? app.graph).serialize());
}"""


class Page:
    """A page of ComfyUI that remembers what went wrong in it."""

    def __init__(self, page, url: str):
        self.page, self.url = page, url
        self.errors: list[str] = []
        self.missing: list[str] = []
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("response", lambda answer: self.missing.append(answer.url) if answer.status >= 400 else None)

    def open(self) -> None:
        self.page.goto(self.url, wait_until="domcontentloaded", timeout=120_000)
        self.page.wait_for_function(
            "() => window.app && window.app.graph && window.LiteGraph && window.app.vueAppReady !== false", timeout=180_000
        )
        self.page.wait_for_function("() => Object.keys(window.LiteGraph.registered_node_types).length > 100", timeout=180_000)

    def load(self, workflow: dict) -> None:
        """Load a workflow as a drop of its file does."""
        self.page.evaluate("async workflow => { await window.app.loadGraphData(workflow) }", workflow)

    def prompt(self) -> dict:
        """What the page would queue."""
        return self.page.evaluate("async () => (await window.app.graphToPrompt()).output")

    def complaints(self) -> set[str]:
        """The errors so far, without what changes from page to page: ports and places in bundled files."""
        found = {re.sub(r"http://127\.0\.0\.1:\d+", "", text) for text in self.errors if not OFFLINE.search(text)}
        return found | {f"{url} is missing" for url in self.missing if "/extensions/exemplary" in url}


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


@pytest.fixture(scope="session")
def without_us(browser):
    """The errors of the same host's page without any custom node: the host's own noise, nothing of ours."""
    with live.comfyui("bare", extra=["--disable-all-custom-nodes"]) as bare:
        page = Page(browser.new_page(), bare.url)
        for _ in range(2):
            page.open()
            for path in live.WORKFLOWS:
                page.load(live.read(path))
            page.page.evaluate(SUBGRAPH)
        page.page.wait_for_timeout(500)
        found = page.complaints()
        page.page.close()
    return found


@pytest.fixture(scope="module", params=["classic", "vue"])
def page(request, browser, comfyui):
    """The page in each of the two renderers; hosts without the second have one."""
    made = Page(browser.new_page(), comfyui.url)
    made.open()
    vue = request.param == "vue"
    # Else a new user's page covers the graph with the template browser, some time after it has opened.
    made.page.evaluate("async () => { await window.app.ui.settings.setSettingValueAsync('Comfy.TutorialCompleted', true) }")
    made.page.keyboard.press("Escape")
    known = made.page.evaluate("() => Boolean(window.app.ui.settings.settingsLookup?.['Comfy.VueNodes.Enabled'])")
    if vue and not known:
        made.page.close()
        pytest.skip("this ComfyUI has no Vue renderer")
    if known:
        made.page.evaluate("async on => { await window.app.ui.settings.setSettingValueAsync('Comfy.VueNodes.Enabled', on) }", vue)
        made.open()
    yield made
    made.page.close()
