"""Every recorded file is compared; one whose technique is not built yet is pending, never passed."""

from __future__ import annotations

import pytest
from pack.tests.conformance.runner import VECTORS, compare, read

FILES = sorted(VECTORS.glob("*.safetensors"))


def test_the_recorded_files_are_there():
    assert len(FILES) == 38


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_matches_the_recorded_numbers(path):
    vector = read(path)
    verdict = compare(vector)
    if verdict.status == "pending":
        pytest.skip(f"pending: {vector.technique} ({vector.case}) is not built yet")
    missed = [f"{name}: {difference}, tolerance {tolerance}" for name, difference, tolerance, holds in verdict.lines if not holds]
    assert not missed, "\n".join(missed)
