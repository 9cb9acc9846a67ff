"""One ComfyUI for all server tests. The pack's folder has a name that only a path can import."""

from __future__ import annotations

import pytest
from pack.devtools.client import Client
from pack.tests import live


@pytest.fixture(scope="session")
def comfyui():
    """The running server."""
    with live.comfyui("server", mount_as="exemplary pack-1.0 \u00e9") as running:
        yield running


@pytest.fixture
def client(comfyui):
    """A client of its own for every test."""
    return Client(comfyui.url)


@pytest.fixture(scope="session")
def object_info(comfyui):
    """What the server says about its nodes."""
    return Client(comfyui.url).object_info()
