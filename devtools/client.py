"""ComfyUI's HTTP API as a user's client sees it: queue a prompt, watch it on the websocket, fetch what it made."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from .say import Trouble
from .server import OPEN
from .websocket import WebSocket


@dataclass
class Run:
    """What one prompt did: its outputs by node, its events in order, and how long it took."""

    prompt_id: str
    outputs: dict[str, dict] = field(default_factory=dict)
    events: list[dict] = field(default_factory=list)
    previews: int = 0
    seconds: float = 0.0
    error: dict | None = None

    def images(self) -> list[tuple[str, dict]]:
        """(node id, image) for every image saved or previewed; an image has filename, subfolder and type."""
        return [(node, image) for node, output in self.outputs.items() for image in output.get("images", [])]

    def texts(self) -> list[tuple[str, str]]:
        """(node id, text) for everything a node shows as text."""
        return [(node, text) for node, output in self.outputs.items() for text in output.get("text", []) if isinstance(text, str)]


class PromptRefused(Trouble):
    """The server did not accept the prompt. `details` is its answer, with the errors by node."""

    def __init__(self, message: str, details: dict):
        super().__init__(message)
        self.details = details


class Client:
    """One user's connection to a running ComfyUI."""

    def __init__(self, url: str):
        self.url = url
        self.client_id = uuid.uuid4().hex

    def get(self, path: str, **query: str) -> bytes:
        """The body of a GET request."""
        return self._open(path + ("?" + urllib.parse.urlencode(query) if query else ""))

    def get_json(self, path: str, **query: str) -> dict:
        """The JSON answer of a GET request."""
        return json.loads(self.get(path, **query))

    def post_json(self, path: str, body: dict) -> dict:
        """Post JSON; the answer is {} where the server has none."""
        answer = self._open(path, json.dumps(body).encode())
        return json.loads(answer) if answer.strip() else {}

    def object_info(self) -> dict:
        """Every node the server knows, with its inputs."""
        return self.get_json("/object_info")

    def view(self, image: dict) -> bytes:
        """The file of an image in a run's outputs."""
        return self.get(
            "/view", filename=image["filename"], subfolder=image.get("subfolder", ""), type=image.get("type", "output")
        )

    def queue(self, prompt: dict) -> str:
        """Post a prompt in API form and return its id; a refusal is raised with what the server found wrong."""
        try:
            answer = self.post_json("/prompt", {"prompt": prompt, "client_id": self.client_id})
        except urllib.error.HTTPError as error:
            details = _json_or_empty(error.read())
            raise PromptRefused(
                _sentence(details, prompt) or f"The server refused the prompt (HTTP {error.code}).", details
            ) from error
        if answer.get("node_errors"):
            # The server runs what is left of a prompt without its faulty branches; here a whole prompt is wanted or none.
            self.post_json("/queue", {"delete": [answer["prompt_id"]]})
            raise PromptRefused(_sentence(answer, prompt), answer)
        return answer["prompt_id"]

    def run(
        self,
        prompt: dict,
        *,
        on_progress: Callable[[str, float], None] | None = None,
        alive: Callable[[], bool] | None = None,
        seconds: float = 600,
    ) -> Run:
        """Queue a prompt and follow it to its end.

        Args:
            on_progress: called with a node's class and its progress from 0 to 1.
            alive: asked once a second; False means that the server has died.
            seconds: how long the run may take.

        Returns:
            The run. An error while executing is in `error`, not raised: the tests look at it.
        """
        port = urllib.parse.urlsplit(self.url).port or 80
        listener = WebSocket("127.0.0.1", port, f"/ws?clientId={self.client_id}")
        started = time.monotonic()
        try:
            run = Run(self.queue(prompt))
            while time.monotonic() - started < seconds:
                message = listener.receive(1.0)
                if message is None:
                    if alive and not alive():
                        raise Trouble("ComfyUI ended in the middle of a prompt.")
                elif isinstance(message, bytes):
                    run.previews += 1
                elif self._note(run, json.loads(message), prompt, on_progress):
                    break
            else:
                self.post_json("/interrupt", {})
                raise Trouble(f"The prompt was not finished after {seconds:.0f} seconds and has been interrupted.")
        except ConnectionError as error:
            raise Trouble(f"ComfyUI closed the connection in the middle of a prompt ({error}).") from error
        finally:
            listener.close()
        run.seconds = time.monotonic() - started
        run.outputs = self._history(run.prompt_id).get("outputs", {})
        return run

    def _note(self, run: Run, event: dict, prompt: dict, on_progress: Callable[[str, float], None] | None) -> bool:
        """Record one event; True when the prompt is over."""
        data = event.get("data", {})
        if data.get("prompt_id") != run.prompt_id:
            return False
        run.events.append(event)
        if event["type"] == "execution_error":
            run.error = data
        if event["type"] == "progress" and on_progress:
            node = prompt.get(str(data.get("node")), {})
            on_progress(node.get("class_type", ""), data["value"] / max(data["max"], 1))
        return event["type"] == "executing" and data.get("node") is None

    def _history(self, prompt_id: str) -> dict:
        for _ in range(50):
            history = self.get_json(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.1)
        raise Trouble("The server has no history of a prompt that it finished.")

    def _open(self, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, data=body, headers={"Content-Type": "application/json"} if body else {})
        with OPEN(request, timeout=120) as response:
            return response.read()


def _sentence(details: dict, prompt: dict) -> str:
    """What the server found wrong with a prompt, node by node."""
    found = []
    for node, errors in (details.get("node_errors") or {}).items():
        name = errors.get("class_type") or prompt.get(node, {}).get("class_type", "?")
        found += [
            f"{name} (node {node}): {error.get('message', '')} {error.get('details', '')}".strip()
            for error in errors.get("errors", [])
        ]
    whole = details.get("error") or {}
    head = f"{whole.get('message', '')} {whole.get('details', '')}".strip() if isinstance(whole, dict) else str(whole)
    return "The server refused the prompt: " + "; ".join([head, *found] if head else found) if head or found else ""


def _json_or_empty(body: bytes) -> dict:
    try:
        answer = json.loads(body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
