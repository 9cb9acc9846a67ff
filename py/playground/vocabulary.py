"""Words to numbers for the playground's text encoder: one token a word, in the interface that the host expects of a tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .world import WORDS

_WORD = re.compile(r"[^\W_]+|,", re.UNICODE)

TOKENS: dict[str, int] = {word: number for number, word in enumerate((",", *WORDS))}
UNKNOWN = len(TOKENS)
START = len(TOKENS) + 1
END = len(TOKENS) + 2  # padding too, as in CLIP
COUNT = len(TOKENS) + 3
LENGTH = 77


def split_words(text: str) -> list[str]:
    """Words and commas in lower case; every other sign is a space."""
    return _WORD.findall(text.lower())


def unknown_words(text: str) -> list[str]:
    """The words of a prompt that the playground does not know, each once, in order."""
    return list(dict.fromkeys(word for word in split_words(text) if word not in TOKENS))


def encode(text: str) -> list[int]:
    """The numbers of a text without start and end; a word that is not known is the one unknown token."""
    return [TOKENS.get(word, UNKNOWN) for word in split_words(text)]


def encode_padded(texts: Iterable[str]) -> list[list[int]]:
    """Start, words, end and padding to `LENGTH` numbers a text, as the host lays out a prompt of one chunk."""
    rows = []
    for text in texts:
        row = [START, *encode(text)[: LENGTH - 2], END]
        rows.append(row + [END] * (LENGTH - len(row)))
    return rows


class WordTokenizer:
    """What the host's `SDTokenizer` calls: `from_pretrained`, `tokenizer(text)["input_ids"]`, `get_vocab()`."""

    @classmethod
    def from_pretrained(cls, *_, **__) -> WordTokenizer:
        return cls()

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [START, *encode(text), END]}

    def get_vocab(self) -> dict[str, int]:
        return {**TOKENS, "<unknown>": UNKNOWN, "<start>": START, "<end>": END}
