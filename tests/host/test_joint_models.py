"""The tiny transformer models run on this host."""

from __future__ import annotations

import pytest
import tiny_dit


@pytest.mark.parametrize("name", tiny_dit.AVAILABLE)
def test_a_tiny_model_samples_finite_latents_that_depend_on_the_prompt(name):
    model = tiny_dit.tiny_dit(name)
    one = tiny_dit.sample(model, name, tiny_dit.conditioning(name, 1))
    other = tiny_dit.sample(model, name, tiny_dit.conditioning(name, 2))
    assert one.isfinite().all()
    assert (one - other).abs().max() > 1e-3 * one.abs().max()
