"""CA2-SIS's losses by their definitions, who gets which gradient, and what the playground's trios promise."""

from __future__ import annotations

import pytest
import torch
from pack.lab.playground import faces
from pack.lab.playground.recipes import ca2sis as recipe
from pack.lab.training.loop import Schedule, fit
from pack.py.ca2sis import codes, training
from pack.py.ca2sis.model import Config, Generator
from pack.py.ca2sis.training import Discriminator, Weights

TINY = Config(
    classes=4, mask_channels=3, style_dim=4, width=32, encoder_width=1, grid=(4, 4), mask_size=(8, 8), head_dims=(2, 2, 2, 2, 2),
    noise_dim=4, noise_width=8,
)  # fmt: skip


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def parts():
    torch.manual_seed(0)
    blocks = torch.randint(0, 4, (2, 8, 8), generator=rng())
    mask = codes.one_hot(blocks.repeat_interleave(8, 1).repeat_interleave(8, 2), 4)
    image = torch.rand(2, 3, 64, 64, generator=rng(1)) * 2 - 1
    return Generator(TINY), Discriminator(4, 4), image, mask


def test_each_adversary_learns_from_its_own_losses_only(parts):
    _, discriminator, image, mask = parts
    fake = torch.zeros_like(image).requires_grad_(True)
    fooled, matching, told = training.adversarial_losses(discriminator, mask, fake, image)
    own = list(discriminator.parameters())
    assert all(p.requires_grad for p in own)
    assert all(g is None for g in torch.autograd.grad(fooled + matching, own, retain_graph=True, allow_unused=True))
    assert torch.autograd.grad(fooled + matching, fake, retain_graph=True)[0].abs().sum() > 0
    assert torch.autograd.grad(told, fake, allow_unused=True, retain_graph=True)[0] is None
    assert sum(float(g.abs().sum()) for g in torch.autograd.grad(told, own, allow_unused=True) if g is not None) > 0


def test_the_losses_by_their_definitions(parts):
    _, discriminator, image, mask = parts
    discriminator.eval()  # spectral norm's power iteration rests, so that a second pass sees the same network
    fake = image.flip(0) * 0.5
    fooled, matching, told = training.adversarial_losses(discriminator, mask, fake, image)
    f, r = discriminator(mask, fake), discriminator(mask, image)
    torch.testing.assert_close(fooled, -sum(s[-1].mean() for s in f) / 2)
    torch.testing.assert_close(matching, sum((a - b).abs().mean() for s, t in zip(f, r) for a, b in zip(s[:-1], t[:-1])) / 2)
    hinge = sum((1 + s[-1]).clamp_min(0).mean() + (1 - t[-1]).clamp_min(0).mean() for s, t in zip(f, r)) / 2
    torch.testing.assert_close(told, hinge)


def test_a_backbone_of_ones_own_is_weighed_fine_to_coarse():
    fake, real = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    found = training.perceptual_loss(lambda x: [x] * 5, fake, real)
    torch.testing.assert_close(found, torch.tensor(1 / 32 + 1 / 16 + 1 / 8 + 1 / 4 + 1))


def test_a_few_adversarial_steps_train_both_at_their_rates(parts, tmp_path):
    generator, discriminator, image, mask = parts
    before = [p.detach().clone() for p in (generator.out_conv.weight, discriminator.scales[0].layers[-1].weight)]
    schedule = Schedule(
        steps=3, learning_rate=1e-4, warmup=0, final_rate=1.0, weight_decay=0.0, ema=0.0, betas=(0.0, 0.9), mixed_precision="no"
    )

    def loss(step, _):
        return training.training_loss(generator, discriminator, image, mask, Weights(pixels=1.0), backbone=lambda x: [x] * 5)

    rates = {"discriminator": training.DISCRIMINATOR_RATE}
    fit("gan", {"generator": generator, "discriminator": discriminator}, loss, schedule, tmp_path, rates=rates)
    moved = [
        float((p.detach() - old).abs().max())
        for p, old in zip((generator.out_conv.weight, discriminator.scales[0].layers[-1].weight), before)
    ]
    assert all(m > 0 for m in moved) and moved[1] > 2 * moved[0]


def test_every_code_draws_the_nearest_noise():
    made = torch.tensor([[[0.0], [5.0]], [[1.0], [9.0]]], requires_grad=True)  # two of noise, two classes
    wanted = torch.tensor([[[0.9], [5.5]]])
    loss = training.noise_loss(made, wanted, torch.tensor([[True, True]]))
    torch.testing.assert_close(loss, torch.tensor((0.1**2 + 0.5**2) / 2))
    loss.backward()
    assert made.grad[0, 0] == 0 and made.grad[1, 1] == 0
    assert float(training.noise_loss(made.detach(), wanted, torch.tensor([[False, False]]))) == 0


def test_a_trio_is_one_face_twice_and_a_donor():
    trio = faces.draw_trio(3)
    assert trio.own_labels.max() < len(faces.CLASSES)
    # Where a class's inside is, only its colour differs; the donor has the other's colours.
    assert (trio.own != trio.donor).any()
    again = faces.draw_trio(3)
    assert (trio.own == again.own).all() and (trio.other == again.other).all()


def test_an_exchange_of_styles_changes_the_classes_taken_and_no_other():
    data = recipe.Faces(3, first=5)
    pictures, labels = data.rows(torch.arange(3))
    taken = torch.zeros(3, len(faces.CLASSES), dtype=torch.bool)
    taken[:, 2] = True
    own, other, donor = pictures.unbind(1)
    found = faces.restyled(own, other, donor, labels[:, 0], labels[:, 1], taken)
    hair = (labels[:, 0] == 2)[:, None].expand_as(own)
    assert torch.equal(found[~hair], own[~hair]) and torch.equal(found[hair], other[hair])


def test_a_new_shape_leaves_open_what_the_old_one_covered():
    labels, donor = torch.tensor([[[0, 1, 2, 4]]]), torch.tensor([[[2, 2, 0, 2]]])
    new, known, added = faces.reshaped(labels, donor, torch.tensor([2]))
    assert new.tolist() == [[[2, 2, 2, 4]]], "the eye stays in front of the hair"
    assert known.tolist() == [[[True, True, False, True]]] and added.tolist() == [[[True, True, False, False]]]


def test_a_third_of_a_batch_is_asked_for_each_kind_of_edit():
    data = recipe.Faces(6)
    pictures, labels = data.rows(torch.arange(6))
    taken, shape_mask, target, weight = recipe.edit_batch(pictures, labels, rng())
    masks = codes.one_hot(labels[:, 0], len(faces.CLASSES))
    same = [torch.equal(a, b) for a, b in zip(shape_mask, masks)]
    assert same == [True, True, False, True, True, False] and not taken[[0, 2, 3, 5]].any()
    assert torch.equal(target[0], pictures[0, 0]) and target.shape == (6, 3, 128, 128)
    assert weight.min() >= 0 and weight[0].min() >= 1


def test_the_recipe_trains_generator_and_noise(tmp_path):
    torch.manual_seed(0)
    generator = recipe.new_generator()
    short = Schedule(steps=1, learning_rate=1e-3, warmup=0, mixed_precision="no")  # one process has one precision
    recipe.train(generator, tmp_path, short, short, recipe.Faces(3))
    assert all(torch.isfinite(p).all() for p in generator.parameters())
    assert generator.encode_style(torch.zeros(1, 3, 128, 128), torch.ones(1, 9, 128, 128)).shape == (1, 9, 160)


def test_a_small_class_in_a_wrong_colour_counts_like_a_large_one():
    masks = codes.one_hot(torch.tensor([[[0, 0, 0, 1], [0, 0, 0, 2]]]), 3)
    drawn, wrong = torch.zeros(1, 3, 2, 4), torch.zeros(3, 1, 3, 2, 4)
    for number, target in enumerate(wrong):
        target += masks[:, number : number + 1]
    assert [float(recipe.colour_loss(drawn, target, masks)) for target in wrong] == pytest.approx([1 / 3] * 3)
    masks[0, 1] = 1  # a place that two classes claim says nothing
    assert float(recipe.colour_loss(drawn, wrong[0], masks)) == 0
