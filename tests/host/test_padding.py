"""Which tokens of a text are words, and which only fill it up."""

from __future__ import annotations

import tiny
import torch
from pack.py.host import padding, playground
from pack.py.host.ca2sis import attention as ca2sis_attention

WIDTH = 8


def text(words, b=1):
    """A CONDITIONING as Stable Diffusion 1.x makes it: the pooled vector is what stands at the end of the text."""
    tokens = torch.randn(b, padding.CHUNK, WIDTH, generator=torch.Generator().manual_seed(words))
    return tokens, tokens[:, words + 1].clone()


def test_a_text_ends_where_its_pooled_vector_stands():
    tokens, pooled = text(3)
    assert torch.equal(padding.without_padding(tokens, pooled), tokens[:, :5])
    longer, its = text(6)
    both = padding.without_padding(torch.cat([tokens, longer]), torch.cat([pooled, its]))
    assert torch.equal(both, torch.cat([tokens, longer])[:, :8])


def test_what_does_not_tell_its_end_stays_whole():
    tokens, pooled = text(3)
    other, _ = text(4)
    several, wide = torch.cat([tokens, other], dim=1), torch.zeros(1, 2 * WIDTH)
    for given, vector in ((tokens, None), (tokens, pooled + 1), (tokens, wide), (several, pooled), (tokens[:, :16], pooled)):
        assert padding.without_padding(given, vector) is given
    mixed = torch.cat([tokens, other]), torch.cat([pooled, pooled + 1])
    assert padding.without_padding(*mixed) is mixed[0]


def test_the_playgrounds_texts_are_read_without_padding():
    clip = playground.load_clip()
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize("a red striped ball"))
    read = ca2sis_attention.class_prompt("ball", conditioning).items[0].tokens
    torch.testing.assert_close(read[0], padding.encode_unpadded(clip, "a red striped ball"))
    assert read.shape[1] == 6 < conditioning[0][0].shape[1]


def test_an_unpadded_text_is_the_start_of_the_padded_one(sd15):
    whole = tiny.conditioning(sd15, "a red ball")[0][0]
    part = padding.encode_unpadded(tiny.TinyCLIP(tiny.text_width(sd15)), "a red ball")
    assert torch.equal(part, whole[0, : len(part)]) and len(part) < whole.shape[1]
