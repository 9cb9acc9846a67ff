"""Measures saliency-adaptive noise fusion on the playground: drawn persons in drawn places. For `dev.py playground evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from einops import rearrange
from torch import Tensor

from ...py.host import folders
from ...py.host.snf import guider as snf
from ...py.host.snf import sampler as snf_sampling
from ...py.host.snf import subjects
from ...py.snf.schedule import Stages
from ..playground.persons import Pairing
from . import playground as measures
from .setup import CFG, SAMPLER, SCHEDULER, STEPS, Studio, records

NEEDS = ["face_diffuser/playground_subject"]
#: By 0.31 the scene model has often decided for one person; found on pairs that are not measured.
SEVERAL_PERSONS = Stages(start_percent=0.1)


class SubjectStudio:
    """Noise fusion with the playground's subject model, and each of the two models alone, as the nodes run them."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.model, self.vision, self.fuser = subjects.load("playground_subject.safetensors")

    def conditions(self, pairing: Pairing) -> tuple[list, list]:
        """With the persons, and the same prompt without them."""
        references = [torch.tensor(picture)[None].float() / 255 for picture in pairing.references]
        return subjects.encode(self.studio.clip, self.vision, self.fuser, pairing.prompt, references)

    def fused(self, pairings: Sequence[Pairing], seeds: Sequence[int]) -> Tensor:
        """SNF Sampler with its defaults; with more than one person the fusion begins earlier."""
        pictures = []
        for pairing, seed in zip(pairings, seeds):
            person, text = self.conditions(pairing)
            scene = self.studio.encode(pairing.text)
            stages = Stages() if len(pairing.people) == 1 else SEVERAL_PERSONS
            guider = snf.FusionGuider(
                self.studio.model, scene, self.studio.encode(""), CFG, [snf.Subject(self.model, person, text, CFG, stages=stages)]
            )
            latent = snf_sampling.sample(guider, {"samples": torch.zeros(1, 4, 16, 16)}, seed, STEPS, SAMPLER, SCHEDULER, 1.0)
            pictures.append(rearrange(self.studio.vae.decode(latent["samples"]), "b h w c -> b c h w").clamp(0, 1))
        return torch.cat(pictures)

    def subject_alone(self, pairings: Sequence[Pairing], seeds: Sequence[int]) -> Tensor:
        """KSampler with the subject model and the prompt with the persons."""
        return torch.cat([self.studio.sample(self.model, self.conditions(p)[0], s) for p, s in zip(pairings, seeds)])

    def scene_alone(self, pairings: Sequence[Pairing], seeds: Sequence[int]) -> Tensor:
        """KSampler with the base model and the prompt without markers."""
        return self.studio.paint([p.text for p in pairings], seeds)


def figures(quick: bool) -> Iterator[dict]:
    """Identity and scene, fused and by each model alone; two persons. `quick` takes five pairs."""
    folders.register()
    studio = Studio()
    persons = SubjectStudio(studio)
    found = measures.subject_figures(
        studio.detector, persons.fused, persons.subject_alone, persons.scene_alone, 5 if quick else 100
    )
    yield from records(found, quick)
