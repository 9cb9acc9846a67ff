"""AM-Adapter's trainers: the second view, the trained layer, and how a matcher is initialised."""

from __future__ import annotations

import torch
from pack.py.am_adapter.agreement import compare_classes
from pack.py.am_adapter.attention import match_tokens
from pack.py.am_adapter.model import Matcher, MatcherLayout
from pack.py.am_adapter.training import attend_through_matcher, crop_second_view, init_as_class_bias_

LAYOUT = MatcherLayout(heads=2, widths=(8, 16, 8))
GRID = (6, 8)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def maps():
    labels = torch.zeros(1, 24, 32, dtype=torch.uint8)
    labels[:, 12:] = 1
    labels[:, :, 24:] = 2
    return labels, labels.flip(1)


def test_a_second_view_keeps_picture_and_map_together():
    labels = torch.randint(0, 4, (8, 8), generator=rng()).repeat_interleave(8, 0).repeat_interleave(8, 1).to(torch.uint8)
    picture = (labels.float() / 3).expand(3, -1, -1)
    views = [crop_second_view(picture, labels, rng(seed)) for seed in range(8)]
    for view, view_labels in views:
        assert view.shape == picture.shape and view_labels.shape == labels.shape and view_labels.dtype == labels.dtype
        # Soft only at the edges of the window's enlarged blocks.
        assert ((view[0] - view_labels.float() / 3).abs() < 0.02).float().mean() > 0.6
    assert len({tuple(view_labels.flatten().tolist()) for _, view_labels in views}) == 8


def test_a_new_matcher_begins_near_its_closed_form():
    """P is larger where classes agree than where they do not, in every part."""
    torch.manual_seed(0)
    matcher = Matcher(LAYOUT)
    init_as_class_bias_(matcher)
    q, k = torch.randn(2, 1, GRID[0] * GRID[1], 8, generator=rng())
    same = compare_classes(*maps(), GRID, GRID)
    agrees = same.block()[0] > 0.5
    for encoder in matcher.encoders:
        p = match_tokens(encoder, q, k, 2, same, GRID, GRID).activation()[0].mean(dim=1).detach()
        assert p[agrees].mean() > 2 * p[~agrees].mean()


def test_a_layer_is_differentiable_in_the_matcher_alone():
    matcher = Matcher(LAYOUT)
    q, k, v, kx, vx = torch.randn(5, 1, GRID[0] * GRID[1], 8, generator=rng()).unbind()
    q.requires_grad_(True)
    out = attend_through_matcher(matcher.encoders[2], q, k, v, 2, (kx, vx), maps(), (GRID, GRID), void=None)
    out.square().mean().backward()
    grads = [p.grad for p in matcher.encoders[2].parameters()]
    assert all(g is not None and g.isfinite().all() for g in grads) and sum(float(g.abs().sum()) for g in grads) > 0
    assert q.grad is not None, "the layer itself still carries gradients to the layers before it"
