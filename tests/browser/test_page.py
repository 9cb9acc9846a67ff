"""The page as a user has it: our nodes are registered, every example loads whole and queues what the converter says, no error."""

from __future__ import annotations

import re

import pytest
from pack.devtools.workflow import to_prompt
from pack.nodes import node_classes
from pack.tests import live

#: What the host's page says on a machine without internet. Everything else that is not ours is found by a page without the pack.
OFFLINE = re.compile(
    r"net::ERR_(INTERNET_DISCONNECTED|NAME_NOT_RESOLVED|CONNECTION_\w+|TUNNEL\w*|PROXY\w*|TIMED_OUT|ADDRESS_UNREACHABLE|FAILED)"
    r"|Failed to load resource: the server responded with a status of 404"  # names no address; ours are checked apart
    r"|https://(api\.comfy\.org|api\.github\.com|raw\.githubusercontent\.com|fonts\.\w+|[\w.-]+\.(sentry\.io|posthog\.com|googleapis\.com))"
)


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


@pytest.fixture(scope="module")
def without_us(browser):
    """The errors of the same host's page without any custom node: the host's own noise, nothing of ours."""
    with live.comfyui("bare", extra=["--disable-all-custom-nodes"]) as bare:
        page = Page(browser.new_page(), bare.url)
        for _ in range(2):
            page.open()
            for path in live.WORKFLOWS:
                page.load(live.read(path))
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
    known = made.page.evaluate("() => Boolean(window.app.ui.settings.settingsLookup?.['Comfy.VueNodes.Enabled'])")
    if vue and not known:
        made.page.close()
        pytest.skip("this ComfyUI has no Vue renderer")
    if known:
        made.page.evaluate("async on => { await window.app.ui.settings.setSettingValueAsync('Comfy.VueNodes.Enabled', on) }", vue)
        made.open()
    yield made
    made.page.close()


def test_our_nodes_are_registered(page):
    registered = page.page.evaluate("() => Object.keys(window.LiteGraph.registered_node_types)")
    assert {node.define_schema().node_id for node in node_classes()} <= set(registered)


@pytest.mark.parametrize("path", [*live.WORKFLOWS, *live.EXAMPLES], ids=lambda path: path.stem)
def test_a_workflow_loads_whole_and_queues_what_the_converter_says(page, path, object_info):
    workflow = live.read(path)
    page.load(workflow)
    registered = set(page.page.evaluate("() => Object.keys(window.LiteGraph.registered_node_types)"))
    virtual = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}
    assert {node["type"] for node in workflow["nodes"]} <= registered | virtual
    assert page.page.evaluate("() => window.app.graph._nodes.length") == len(workflow["nodes"])
    assert page.page.evaluate("() => window.app.graph._nodes.filter(node => node.has_errors).map(node => node.type)") == []
    assert declared(page.prompt(), object_info) == declared(to_prompt(workflow, object_info), object_info)


def test_every_node_of_ours_can_be_placed_and_saved(page):
    page.page.evaluate("() => window.app.graph.clear()")
    for node in node_classes():
        name = node.define_schema().node_id
        assert (
            page.page.evaluate(
                "name => { const n = window.LiteGraph.createNode(name); window.app.graph.add(n); return n.type }", name
            )
            == name
        )
    saved = page.page.evaluate("() => window.app.graph.serialize()")
    page.load(saved)
    assert page.page.evaluate("() => window.app.graph._nodes.length") == len(node_classes())


def test_the_console_holds_no_error_of_ours(page, without_us):
    page.page.wait_for_timeout(500)
    assert page.complaints() - without_us == set()


def declared(prompt: dict, object_info: dict) -> dict:
    """A prompt without node titles, which follow the user's language, and without what only the page knows (a preview's text)."""
    found = {}
    for key, node in prompt.items():
        known = {name for group in object_info[node["class_type"]]["input"].values() for name in group}
        found[key] = (node["class_type"], {name: value for name, value in node["inputs"].items() if name in known})
    return found
