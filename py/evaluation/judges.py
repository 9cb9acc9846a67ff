"""Detection in photos: a zero-shot detector, and a vision-language model that answers yes or no; both are `transformers` models.

They are loaded from folders on this machine and nothing is downloaded. Any model of the tasks "zero-shot-object-detection" (Grounding
DINO, OWL-ViT) and "image-text-to-text" works.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from .detection import Box, Detection

QUESTION = "Does this image show {phrase}? Answer with yes or no."
LEAST = 0.1  # score of a candidate
MARGIN = 0.05  # of a box's side, around the crop for the vision-language model

#: A PIL image and a phrase -> [{"box": {"xmin" ...} in pixels, "score"}].
Detector = Callable[[Image.Image, str], Sequence[dict]]
#: A PIL image and a question -> the answer.
Answerer = Callable[[Image.Image, str], str]


@dataclass(frozen=True)
class DetectorJudge:
    """Boxes from a detector; their content is checked by a vision-language model or, without one, by the detector only."""

    detector: Detector
    answerer: Answerer | None = None

    def detect(self, image: Tensor, phrase: str) -> list[Detection]:
        """Candidates with a score of at least `LEAST`."""
        shown = as_pil(image)
        found = []
        for each in self.detector(shown, phrase):
            x0, y0, x1, y1 = (float(each["box"][edge]) for edge in ("xmin", "ymin", "xmax", "ymax"))
            if each["score"] >= LEAST:
                box = (x0 / shown.width, y0 / shown.height, x1 / shown.width, y1 / shown.height)
                found.append(Detection(box, float(each["score"])))
        return found

    def matches(self, image: Tensor, box: Box, phrase: str) -> bool:
        """Whether the vision-language model answers yes for the crop."""
        if self.answerer is None:
            return True
        shown = as_pil(image)
        w, h = MARGIN * (box[2] - box[0]), MARGIN * (box[3] - box[1])
        edges = (max(box[0] - w, 0.0), max(box[1] - h, 0.0), min(box[2] + w, 1.0), min(box[3] + h, 1.0))
        left, top = int(edges[0] * shown.width), int(edges[1] * shown.height)
        crop = shown.crop((left, top, max(left + 1, round(edges[2] * shown.width)), max(top + 1, round(edges[3] * shown.height))))
        return self.answerer(crop, QUESTION.format(phrase=phrase)).strip().lower().startswith("yes")


def as_pil(image: Tensor) -> Image.Image:
    """[3, h, w] in 0..1 -> an 8-bit image."""
    return Image.fromarray(image.detach().float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy())


def from_folders(detector: str, answerer: str = "") -> DetectorJudge:
    """Load the models of two folders. Raises ValueError if a folder does not exist or contains no such model."""
    find = _pipeline("zero-shot-object-detection", detector, "detector")

    def detect(image: Image.Image, phrase: str) -> Sequence[dict]:
        return find(image, candidate_labels=[phrase], threshold=LEAST)

    if not answerer:
        return DetectorJudge(detect)
    ask = _pipeline("image-text-to-text", answerer, "vision-language model")

    def answer(image: Image.Image, question: str) -> str:
        message = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
        return str(ask(text=message, max_new_tokens=5, return_full_text=False)[0]["generated_text"])

    return DetectorJudge(detect, answer)


def _pipeline(task: str, folder: str, what: str) -> Any:
    import transformers  # takes seconds to import, and most users never need it

    _check_folder(folder, what, task)
    make: Any = transformers.pipeline  # its overloads are typed for literal task names only
    try:
        return make(task, model=folder, local_files_only=True)
    except (
        Exception
    ) as error:  # a damaged or hostile file raises whatever the first wrong byte leads to; nothing in it is executed
        raise ValueError(f"The folder {folder!r} contains no {task} model: {_explain(error)}") from None


def _explain(error: Exception) -> str:
    """The first line of an error, but not torch's advice to load a file unsafely."""
    if isinstance(error, pickle.UnpicklingError):
        return "its weights are damaged or contain more than weights, and were not loaded."
    return (str(error).splitlines() or [type(error).__name__])[0]


def _check_folder(folder: str, what: str, task: str) -> None:
    if not folder or not Path(folder).is_dir():
        raise ValueError(
            f"The {what}'s folder {folder!r} does not exist. Download a {task} model from the Hugging Face hub into a folder."
        )


def clip_embedders(folder: str) -> tuple[Callable[[Sequence[Tensor]], Tensor], Callable[[Sequence[str]], Tensor]]:
    """Images [3, h, w] and texts -> embeddings [n, c], by a CLIP model of `transformers` in a folder. Raises ValueError as above."""
    import torch
    from transformers import CLIPModel, CLIPProcessor

    _check_folder(folder, "CLIP model", "CLIP")
    try:
        model: Any = CLIPModel.from_pretrained(folder, local_files_only=True)
        prepare: Any = CLIPProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ValueError(f"The folder {folder!r} contains no CLIP model: {_explain(error)}") from None

    def embed_images(images: Sequence[Tensor]) -> Tensor:
        with torch.no_grad():
            return torch.cat([model.get_image_features(**prepare(images=as_pil(each), return_tensors="pt")) for each in images])

    def embed_texts(texts: Sequence[str]) -> Tensor:
        with torch.no_grad():
            rows = [prepare(text=text, truncation=True, return_tensors="pt") for text in texts]
            return torch.cat([model.get_text_features(**row) for row in rows])

    return embed_images, embed_texts
