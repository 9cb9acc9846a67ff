"""One layer of IFAdapter against a plain second writing: ten slots, whole maps, a mask on the keys."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from pack.py.ifadapter.attention import (
    FUSIONS,
    InstanceRegions,
    boxes_to_rectangles,
    compute_gate_logits,
    compute_injection,
    compute_instance_maps,
    compute_slot_weights,
    fuse_instance_maps,
    project_tokens,
)
from pack.py.ifadapter.model import Injection

HEADS, CHANNELS, WIDTH, TOKENS = 4, 32, 24, 13
BOXES = torch.tensor([[0.0, 0.0, 0.6, 0.7], [0.4, 0.3, 1.0, 1.0], [0.05, 0.5, 0.3, 0.95]])


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def layer_of(seed=0):
    """Every parameter drawn, so that no gate is flat or closed."""
    layer = Injection(CHANNELS, HEADS, WIDTH, reduction=4).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=rng(seed + parameter.numel())))
        layer.alpha.fill_(0.8)
        layer.conv.bias.fill_(1.3)  # far from 0, or the padding slots would not tell it from no bias
    return layer


def problem(h, w, n=3, sets=2, seed=5):
    q, base = torch.randn(2, 2, h * w, CHANNELS, generator=rng(seed))
    return q, base, torch.randn(sets, n, TOKENS, WIDTH, generator=rng(seed + 1))


def plain_rms(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + weight)


def published(layer, q, tokens, rows, boxes, h, w, slots=10):
    """D step by step as the method is described: slots of whole maps, zeros in the unused ones, one softmax over all of them."""
    b, n, d = q.shape[0], len(boxes), CHANNELS // HEADS
    maps, ratios, masks = torch.zeros(b, slots, h, w, CHANNELS), torch.zeros(slots), torch.zeros(slots, h, w)
    for i, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        masks[i, math.floor(y0 * h) : math.ceil(y1 * h), math.floor(x0 * w) : math.ceil(x1 * w)] = 1
    union = masks.amax(0)
    for i in range(n):
        ratios[i] = union.sum() / masks[i].sum()
        for row in range(b):
            k = layer.to_k_ap(tokens[rows[row], i]).view(TOKENS, HEADS, d)
            v = layer.to_v_ap(tokens[rows[row], i]).view(TOKENS, HEADS, d)
            queries = plain_rms(q[row].view(h * w, HEADS, d), layer.q_norm.weight)
            logits = torch.einsum("lnd,mnd->nlm", queries, plain_rms(k, layer.k_norm.weight)) / math.sqrt(d)
            # The lowest number outside of the box: there the softmax is uniform, and the multiplication removes it.
            logits = logits + torch.where(masks[i].flatten() > 0, 0.0, torch.finfo(torch.float32).min)[None, :, None]
            s = torch.einsum("nlm,mnd->lnd", logits.softmax(-1), v).reshape(h, w, CHANNELS)
            maps[row, i] = s * masks[i, ..., None]
    x = maps.flatten(0, 1).permute(0, 3, 1, 2)
    mlp = layer.cbam.cam.linear
    x = x * torch.sigmoid(mlp(x.amax((2, 3))) + mlp(x.mean((2, 3))))[..., None, None]
    pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)
    x = x * torch.sigmoid(F.conv2d(pooled, layer.cbam.sam.conv.weight, padding=3))
    logits = F.conv2d(x, layer.conv.weight, layer.conv.bias).view(b, slots, h, w)
    weights = (logits * torch.sigmoid(ratios)[:, None, None]).softmax(dim=1)
    fused = (weights[..., None] * maps).sum(1) * union[..., None]
    return fused.flatten(1, 2), logits, weights


GRIDS = [(8, 8), (7, 11), (19, 13), (1, 6), (38, 26)]


@torch.no_grad()
@pytest.mark.parametrize("h, w", GRIDS)
@pytest.mark.parametrize("n", [1, 3])
def test_the_closed_form_equals_ten_slots_on_any_grid(h, w, n):
    layer, (q, _, tokens) = layer_of(), problem(h, w, n)
    fused, logits, weights = published(layer, q, tokens, (0, 1), BOXES[:n], h, w)
    regions, projected = InstanceRegions.from_boxes(BOXES[:n], h, w), project_tokens(layer, tokens)
    found, outside = compute_gate_logits(layer, compute_instance_maps(layer, q, projected, (0, 1), regions), regions)
    torch.testing.assert_close(found, logits[:, :n], rtol=0, atol=2e-5)
    torch.testing.assert_close(logits[:, n:], outside.expand_as(logits[:, n:]), rtol=0, atol=1e-6)
    torch.testing.assert_close(compute_slot_weights(found, outside, regions), weights[:, :n], rtol=0, atol=1e-5)
    torch.testing.assert_close(fuse_instance_maps(layer, q, projected, (0, 1), regions), fused, rtol=0, atol=1e-5)


@torch.no_grad()
def test_padding_takes_its_share():
    layer, (q, _, tokens) = layer_of(), problem(6, 6, 1)
    layer.conv.weight.zero_()
    layer.conv.bias.zero_()
    regions = InstanceRegions.from_boxes(BOXES[:1], 6, 6)
    maps = compute_instance_maps(layer, q, project_tokens(layer, tokens), (0, 1), regions)
    weight = compute_slot_weights(*compute_gate_logits(layer, maps, regions), regions)
    torch.testing.assert_close(weight, torch.full_like(weight, 0.1))


@torch.no_grad()
@pytest.mark.parametrize("n", [10, 12])
def test_as_many_slots_as_instances_leave_no_padding(n):
    layer, (q, _, tokens) = layer_of(), problem(6, 6, n)
    boxes = torch.rand(n, 4, generator=rng(3)).mul(0.4) + torch.tensor([0.0, 0.0, 0.5, 0.5])
    regions, projected = InstanceRegions.from_boxes(boxes, 6, 6), project_tokens(layer, tokens)
    weight = compute_slot_weights(
        *compute_gate_logits(layer, compute_instance_maps(layer, q, projected, (0, 1), regions), regions), regions
    )
    torch.testing.assert_close(weight.sum(1), torch.ones(2, 6, 6))
    fused, _, _ = published(layer, q, tokens, (0, 1), boxes, 6, 6, slots=n)
    torch.testing.assert_close(fuse_instance_maps(layer, q, projected, (0, 1), regions), fused, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_order_of_cond_and_uncond_does_not_matter():
    layer, (q, base, tokens) = layer_of(), problem(7, 9)
    regions, projected = InstanceRegions.from_boxes(BOXES, 7, 9), project_tokens(layer, tokens)
    both = base + compute_injection(layer, q, projected, (0, 1), regions)
    swapped = base.flip(0) + compute_injection(layer, q.flip(0), projected, (1, 0), regions)
    torch.testing.assert_close(swapped.flip(0), both, rtol=0, atol=1e-6)
    for row in (0, 1):
        alone = base[row : row + 1] + compute_injection(layer, q[row : row + 1], projected, (row,), regions)
        torch.testing.assert_close(alone, both[row : row + 1], rtol=0, atol=1e-6)


@torch.no_grad()
def test_an_untrained_gate_changes_no_bit():
    layer, (q, base, tokens) = layer_of(), problem(7, 9)
    regions, projected = InstanceRegions.from_boxes(BOXES, 7, 9), project_tokens(layer, tokens)
    layer.alpha.zero_()
    assert torch.equal(base + compute_injection(layer, q, projected, (0, 1), regions), base)
    layer.alpha.fill_(0.5)
    assert not torch.equal(base + compute_injection(layer, q, projected, (0, 1), regions), base)


def test_no_instances_change_nothing():
    layer, (q, _, tokens) = layer_of(), problem(4, 4, 0)
    regions = InstanceRegions.from_boxes(torch.zeros(0, 4), 4, 4)
    assert not compute_injection(layer, q, project_tokens(layer, tokens), (0, 1), regions).any()


@torch.no_grad()
@pytest.mark.parametrize("fusion", FUSIONS)
def test_nothing_is_added_outside_of_the_boxes(fusion):
    layer, (q, _, tokens) = layer_of(), problem(10, 8)
    regions = InstanceRegions.from_boxes(BOXES, 10, 8)
    fused = fuse_instance_maps(layer, q, project_tokens(layer, tokens), (0, 1), regions, fusion=fusion)
    union = torch.cat([regions.full_mask(i) for i in range(3)]).amax(0).flatten() > 0
    assert not fused[:, ~union].any() and bool((fused[:, union] != 0).all()) and bool(fused.isfinite().all())


@torch.no_grad()
def test_in_the_papers_form_the_instances_of_a_cell_share_it_alone():
    layer, (q, _, tokens) = layer_of(), problem(10, 10)
    regions, projected = InstanceRegions.from_boxes(BOXES, 10, 10), project_tokens(layer, tokens)
    logits, outside = compute_gate_logits(layer, compute_instance_maps(layer, q, projected, (0, 1), regions), regions)
    weights = compute_slot_weights(logits, outside, regions, fusion="paper")
    areas = torch.stack([regions.full_mask(i)[0].sum() for i in range(3)])
    shares = weights / torch.sigmoid(areas.sum() / areas)[:, None, None]
    present = torch.cat([regions.full_mask(i) for i in range(3)]) > 0
    torch.testing.assert_close(shares.sum(1), torch.ones(2, 10, 10))
    assert bool((shares[:, present & (present.sum(0) == 1)] == 1).all())
    two = present[0] & present[1] & ~present[2]
    expected = torch.sigmoid(logits[:, 0] - logits[:, 1])[:, two]
    torch.testing.assert_close(shares[:, 0][:, two], expected, rtol=0, atol=1e-6)


def test_an_unknown_form_is_named():
    regions = InstanceRegions.from_boxes(BOXES, 4, 4)
    with pytest.raises(ValueError, match=r"'both'.*published code, paper"):
        compute_slot_weights(torch.zeros(1, 3, 4, 4), torch.zeros(()), regions, fusion="both")


@torch.no_grad()
def test_the_strength_of_one_instance_scales_what_it_adds_and_nothing_else():
    layer, (q, _, tokens) = layer_of(), problem(8, 8)
    regions, projected = InstanceRegions.from_boxes(BOXES, 8, 8), project_tokens(layer, tokens)
    full, half, none = (
        fuse_instance_maps(layer, q, projected, (0, 1), regions, strengths=(one, 1.0, 1.0)) for one in (1.0, 0.5, 0.0)
    )
    torch.testing.assert_close(half, (full + none) / 2, rtol=0, atol=1e-6)
    assert not torch.equal(full, none)


@torch.no_grad()
def test_a_mask_in_the_shape_of_the_box_is_the_box():
    layer, (q, _, tokens) = layer_of(), problem(9, 12)
    boxes, masks = InstanceRegions.from_boxes(BOXES, 9, 12), [None, None, None]
    masks[1] = boxes.full_mask(1)
    masked = InstanceRegions.from_boxes(torch.cat([BOXES[:1], torch.tensor([[0.0, 0.0, 1.0, 1.0]]), BOXES[2:]]), 9, 12, masks)
    projected = project_tokens(layer, tokens)
    assert masked.rectangles == boxes.rectangles
    torch.testing.assert_close(masked.area_ratio, boxes.area_ratio)
    found = fuse_instance_maps(layer, q, projected, (0, 1), masked)
    torch.testing.assert_close(found, fuse_instance_maps(layer, q, projected, (0, 1), boxes), rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_mask_with_a_hole_adds_nothing_in_the_hole_and_can_differ_between_rows():
    layer, (q, _, tokens) = layer_of(), problem(8, 8, 1)
    mask = torch.ones(2, 8, 8)
    mask[0, 2:4, 2:4] = 0
    regions = InstanceRegions.from_boxes(BOXES[:1], 8, 8, [mask])
    fused = fuse_instance_maps(layer, q, project_tokens(layer, tokens), (0, 1), regions).view(2, 8, 8, CHANNELS)
    assert not fused[0, 2:4, 2:4].any() and bool((fused[1] != 0).all())


def test_masks_that_do_not_fit_say_so():
    with pytest.raises(ValueError, match=r"instance 1 has shape \(1, 5, 8\); needed is \[frames, 8, 8\]"):
        InstanceRegions.from_boxes(BOXES[:1], 8, 8, [torch.ones(1, 5, 8)])
    with pytest.raises(ValueError, match="empty on a grid of 8 x 8"):
        InstanceRegions.from_boxes(BOXES[:1], 8, 8, [torch.zeros(1, 8, 8)])
    with pytest.raises(ValueError, match="3 boxes but 1 masks"):
        InstanceRegions.from_boxes(BOXES, 8, 8, [None])
    with pytest.raises(ValueError, match="must have 1 or all the same number"):
        InstanceRegions.from_boxes(BOXES[:2], 8, 8, [torch.ones(2, 8, 8), torch.ones(3, 8, 8)])


def test_a_grid_that_is_not_the_layers_says_so():
    layer, (q, _, tokens) = layer_of(), problem(6, 6)
    with pytest.raises(ValueError, match="36 cells, but the regions are on a grid of 5 x 7"):
        compute_instance_maps(layer, q, project_tokens(layer, tokens), (0, 1), InstanceRegions.from_boxes(BOXES, 5, 7))


@pytest.mark.parametrize(
    "box, h, w, cells",
    [
        ((0.0, 0.0, 1.0, 1.0), 5, 7, (0, 5, 0, 7)),
        ((0.26, 0.51, 0.74, 0.99), 4, 8, (2, 4, 2, 6)),
        ((0.999, 0.999, 1.0, 1.0), 3, 3, (2, 3, 2, 3)),
        ((0.5, 0.5, 0.5, 0.5), 4, 4, (2, 3, 2, 3)),
        ((1.0, 1.0, 1.0, 1.0), 4, 4, (3, 4, 3, 4)),
        ((-1.0, 0.25, 2.0, 0.5), 4, 4, (1, 2, 0, 4)),
    ],
)
def test_a_box_takes_every_cell_it_touches_and_at_least_one(box, h, w, cells):
    assert boxes_to_rectangles(torch.tensor([box]), h, w) == (cells,)


def test_gradients_reach_every_weight_and_the_gate_first():
    layer, (q, _, tokens) = layer_of(), problem(6, 5)
    regions = InstanceRegions.from_boxes(BOXES, 6, 5)
    compute_injection(layer, q, project_tokens(layer, tokens), (0, 1), regions).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) and bool(p.grad.any()) for p in layer.parameters())


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near_and_keeps_its_type(dtype):
    layer, (q, base, tokens) = layer_of(), problem(6, 8)
    regions = InstanceRegions.from_boxes(BOXES, 6, 8)
    exact = base + compute_injection(layer, q, project_tokens(layer, tokens), (0, 1), regions)
    half = layer_of().to(dtype)
    found = base.to(dtype) + compute_injection(half, q.to(dtype), project_tokens(half, tokens.to(dtype)), (0, 1), regions)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), exact, rtol=0, atol=6e-2)  # bfloat16 has 8 bits, the base reaches 4
