"""Warnings for the user: always in the log, and on the node where the host can show it."""

from __future__ import annotations

import html
import logging
import sys

log = logging.getLogger("exemplary")


def warn_user(message: str) -> None:
    """Warn in the log and, inside a running prompt, as text under the node that is being executed."""
    log.warning(message)
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    node = _executing_node()
    if server is None or node is None:
        return
    try:
        # The classic canvas inserts this text as HTML, and names of classes and files come from strangers.
        server.send_progress_text(html.escape(message), node)
    except Exception:  # a notice must never stop a prompt; newer frontends may change this channel
        log.debug("the notice could not be shown on node %s", node, exc_info=True)


def _executing_node() -> str | None:
    try:
        from comfy_execution.utils import get_executing_context
    except ImportError:
        return None
    context = get_executing_context()
    return None if context is None else context.node_id
