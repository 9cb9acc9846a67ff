"""Makes `import tiny` work: tiny models of the host's own classes for every test here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import tiny


@pytest.fixture(scope="session")
def sd15():
    return tiny.tiny_model(tiny.TinySD15)


@pytest.fixture(scope="session")
def sdxl():
    return tiny.tiny_model(tiny.TinySDXL)


@pytest.fixture(params=["sd15", "sdxl"])
def model(request):
    """A tiny random MODEL of each shape. Shared by the whole session: a test that changes it breaks the others, and says so."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def other():
    """A second checkpoint of Stable Diffusion 1.5's shape."""
    return tiny.tiny_model(tiny.TinySD15, seed=1)
