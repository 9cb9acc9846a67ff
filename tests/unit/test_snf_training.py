"""The losses that train a subject model, against plain sentences about them."""

from __future__ import annotations

import torch
from pack.py.snf.model import Postfuse
from pack.py.snf.training import Drops, fuse_batch, localisation_loss, loss_region, token_attention


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_drops_come_as_often_as_published():
    present = torch.tensor([[True, True], [True, False]]).repeat(5000, 1)
    no_caption, used, masked = Drops().draw(present, generator())
    assert not used[~present].any() and not used[no_caption].any(), "without its caption a picture has no person either"
    assert abs(no_caption.float().mean() - 0.1) < 0.02 and abs(masked.float().mean() - 0.5) < 0.03
    kept = used[present & ~no_caption[:, None]].float().mean()
    assert abs(kept - 0.9) < 0.02


def test_the_loss_counts_inside_of_all_persons_or_everywhere():
    masks = torch.zeros(3, 2, 4, 4)
    masks[0, 0, :2], masks[0, 1, :, 3], masks[1, 0] = 1, 1, 0.5
    region = loss_region(masks, torch.tensor([True, False, True]))
    assert torch.equal(region[0, 0], masks[0].amax(dim=0))
    assert region[1].eq(1).all(), "not masked"
    assert region[2].eq(1).all(), "nobody there"


def test_only_the_used_persons_rows_change_and_each_by_its_own_picture():
    postfuse, text = Postfuse(8), torch.randn(2, 5, 8, generator=generator())
    embeds = torch.randn(2, 2, 8, generator=generator(1), requires_grad=True)
    positions, used = torch.tensor([[1, 3], [2, 0]]), torch.tensor([[True, True], [True, False]])
    found = fuse_batch(postfuse, text, embeds, positions, used)
    expected = text.clone()
    for picture, reference in used.nonzero().tolist():
        row = text[picture, positions[picture, reference]]
        expected[picture, positions[picture, reference]] = postfuse(row, embeds[picture, reference])
    torch.testing.assert_close(found, expected)
    (found * torch.randn(found.shape, generator=generator(2))).sum().backward()
    assert embeds.grad[1, 1].eq(0).all() and embeds.grad[0].ne(0).any(dim=-1).all()
    assert fuse_batch(postfuse, text, embeds, positions, torch.zeros(2, 2, dtype=torch.bool)) is text


def test_token_attention_is_the_column_of_a_softmax():
    q, k = (torch.randn(1, count, 4, generator=generator(seed)) for seed, count in enumerate((6, 3)))
    found = token_attention(q, k, 1, torch.tensor([[2, 0]]))
    expected = (q[0] @ k[0].T / 2).softmax(dim=-1)
    torch.testing.assert_close(found[0], expected[:, [2, 0]].T)


def test_attention_inside_is_rewarded_and_outside_is_not():
    masks = torch.zeros(1, 2, 4, 4)
    masks[0, 0, :, :2] = 1
    used = torch.tensor([[True, False]])
    inside = masks.flatten(2)
    losses = [float(localisation_loss([(a, (4, 4))], masks, used)) for a in (inside, torch.ones(1, 2, 16), 1 - inside)]
    assert losses == [-1.0, 0.0, 1.0]
    assert localisation_loss([(inside, (4, 4))], masks, ~used | used.new_zeros(1, 2)).isfinite()
    assert localisation_loss([], masks, used) == 0
