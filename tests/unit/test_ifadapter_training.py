"""Training computes what sampling will: rows together equal rows alone, dropped rows equal uncond rows, and gradients arrive."""

from __future__ import annotations

import torch
from pack.lab.training.diffusion import denoising_loss
from pack.py.ifadapter.attention import InstanceRegions, compute_injection, project_tokens
from pack.py.ifadapter.model import Config, IFAdapter, Layer
from pack.py.ifadapter.training import Batch, Prepared, draw_drops

CONFIG = Config(
    layers=(Layer("a", ("middle", 0, 0), 32, 2),),
    encoders=(("l", 24),),
    text_layers=(-1, -2),
    queries=2,
    dim=32,
    depth=2,
    heads=2,
    dim_head=16,
    ff_mult=2,
    position_width=16,
    frequencies=4,
    reduction=4,
)
GRID = (9, 13)


def network() -> IFAdapter:
    torch.manual_seed(0)
    made = IFAdapter(CONFIG)
    made.adapter_modules["a"].alpha.data.fill_(0.7)
    return made


def batch(seed: int = 1) -> Batch:
    """Three rows of two, three and one instance, boxes that overlap and boxes smaller than a cell."""
    g = torch.Generator().manual_seed(seed)
    present = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
    corner = torch.rand(3, 3, 2, generator=g) * 0.6
    boxes = torch.cat([corner, corner + torch.tensor([0.02, 0.4])], dim=-1)
    phrases, eot = torch.randn(3, 3, 2, 7, 24, generator=g), torch.randn(3, 3, 1, 24, generator=g)
    return Batch(phrases, eot, torch.full((3, 3), 5), boxes, present)


def test_rows_together_equal_each_row_as_it_is_sampled():
    made, layouts = network(), batch()
    q = torch.randn(3, GRID[0] * GRID[1], 32, generator=torch.Generator().manual_seed(2))
    together = Prepared(made, layouts).change("a", q, *GRID)
    for row in range(3):
        here = layouts.present[row]
        boxes = layouts.boxes[row, here]
        tokens = made.conditional_and_unconditional_tokens(
            layouts.phrases[row, here], layouts.eot[row, here], layouts.counts[row, here], boxes
        )
        layer = made.adapter_modules["a"]
        regions = InstanceRegions.from_boxes(boxes, *GRID)
        alone = compute_injection(layer, q[row : row + 1], project_tokens(layer, tokens), [1], regions)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)  # float32 sums in another order


def test_dropped_rows_equal_uncond_rows():
    made, layouts = network(), batch()
    dropped = Prepared(made, layouts.drop_phrases(torch.tensor([False, True, False]))).tokens
    uncond, cond = made.conditional_and_unconditional_tokens(
        layouts.phrases[1], layouts.eot[1], layouts.counts[1], layouts.boxes[1]
    )
    torch.testing.assert_close(dropped[1], uncond, rtol=1e-5, atol=1e-6)
    kept = made.conditional_and_unconditional_tokens(layouts.phrases[0], layouts.eot[0], layouts.counts[0], layouts.boxes[0])[1]
    torch.testing.assert_close(dropped[0], kept, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(uncond, cond)


def test_drops_have_the_published_shares_and_are_independent():
    local, whole = draw_drops(20_000, torch.Generator().manual_seed(0))
    assert abs(float(local.float().mean()) - 0.15) < 0.01 and abs(float(whole.float().mean()) - 0.30) < 0.01
    assert abs(float((local & whole).float().mean()) - 0.045) < 0.01


def test_the_loss_teaches_every_part():
    made, layouts = network(), batch()
    prepared = Prepared(made, layouts)

    def predict(x, t):
        q = x.flatten(2).transpose(1, 2).repeat(1, 1, 8)
        return x + prepared.change("a", q, *GRID)[..., :4].transpose(1, 2).unflatten(2, GRID)

    latent = torch.randn(3, 4, *GRID, generator=torch.Generator().manual_seed(3))
    alphas = torch.linspace(0.99, 0.01, 1000)
    loss = denoising_loss(predict, latent, alphas, torch.Generator().manual_seed(4))
    loss.backward()
    silent = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert loss.isfinite() and not silent


def test_a_perfect_prediction_has_no_loss():
    latent, alphas = torch.zeros(2, 4, 8, 8), torch.full((10,), 0.36)
    loss = denoising_loss(lambda x, t: x / 0.8, latent, alphas, torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss, torch.zeros(()))
