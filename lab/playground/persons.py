"""Images of known persons: each with other images of the same persons, to be recognised by, and a caption that does not describe them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...py.playground.figures import Identity, random_identity
from ...py.playground.portraits import draw_people, draw_portrait, where
from ...py.playground.scene import Scene
from ...py.playground.scenes import SIDE
from ...py.playground.vocabulary import encode
from ...py.playground.world import BACKDROPS, PLACES
from ...py.snf.model import MARKER

#: One round of training images. The subject model is to know persons; places it sees only where they do not count.
MIX = ("portrait", "single", "portrait", "pair", "place single", "place pair")


@dataclass
class PersonExample:
    """One image and its persons.

    `prompt` has a marker behind each person's word, in the order of `people` (left to right, the order of the scene's instances);
    `references` are portraits of them, drawn anew, [side, side, 3] uint8 each.
    """

    scene: Scene
    prompt: str
    people: list[Identity]
    references: list[np.ndarray]
    plain: bool  # the backdrop counts too

    @property
    def text(self) -> str:
        """The prompt without markers."""
        return self.prompt.replace(f" {MARKER}", "")

    @property
    def positions(self) -> list[int]:
        """The token of each person in the encoded text, the start token being 0."""
        return [place + 1 for place, word in enumerate(encode(self.text)) if word == encode("person")[0]]


def prompt_of(count: int, place: str, portrait: bool = False) -> str:
    """`a person <|image|> and a person <|image|> in a park`."""
    persons = " and ".join([f"a person {MARKER}"] * count)
    return ("a portrait of " if portrait else "") + persons + where(place)


def reference_of(who: Identity, rng: np.random.Generator, side: int = SIDE, noise: bool = False) -> np.ndarray:
    """A portrait of a person; with `noise` everything around it is random, as the published training does it."""
    scene = draw_portrait(rng, side, who)
    if not noise:
        return scene.image
    around = rng.integers(0, 255, scene.image.shape, dtype=np.uint8)
    return np.where(scene.instance_map[..., None] > 0, scene.image, around)


@dataclass
class Pairing:
    """Persons and the setting that they are wanted in, never drawn together; `references` as in `PersonExample`."""

    people: list[Identity]
    place: str
    references: list[np.ndarray]

    @property
    def prompt(self) -> str:
        """With markers."""
        return prompt_of(len(self.people), self.place)

    @property
    def text(self) -> str:
        """Without."""
        return self.prompt.replace(f" {MARKER}", "")


def held_out_pairings(count: int, people: int = 1) -> list[Pairing]:
    """Persons and places that no training has put together; the places in turn."""
    found = []
    for number in range(count):
        rng = np.random.default_rng([78, people, number])
        who = [random_identity(rng) for _ in range(people)]
        found.append(Pairing(who, PLACES[number % len(PLACES)], [reference_of(person, rng) for person in who]))
    return found


def draw_example(number: int, side: int = SIDE) -> PersonExample:
    """Training example `number`, always the same one."""
    rng = np.random.default_rng([77, number])
    kind = MIX[number % len(MIX)]
    people = [random_identity(rng) for _ in range(2 if kind.endswith("pair") else 1)]
    plain = not kind.startswith("place")
    place = str(rng.choice(list(BACKDROPS) if plain else PLACES))
    if kind == "portrait":
        scene = draw_portrait(rng, side, people[0])
        place = scene.attributes["backdrop"]
    else:
        scene = draw_people(rng, side, people, place)
    references = [reference_of(who, rng, side, noise=bool(rng.random() < 0.4)) for who in people]
    return PersonExample(scene, prompt_of(len(people), place, kind == "portrait"), people, references, plain)
