"""Search aliases: the words under which users look for a node, beside its display name. In English, as in the host's own nodes."""

from __future__ import annotations

import dataclasses

from comfy_api.latest import io

SEARCH_ALIASES: dict[str, tuple[str, ...]] = {
    # Semantic maps
    "ExemplarySemanticMapFromImage": (
        "segmentation",
        "segmentation map",
        "semantic segmentation",
        "label map",
        "ade20k",
        "cityscapes",
    ),
    "ExemplarySemanticMapPainter": (
        "paint segmentation",
        "draw segmentation",
        "segmentation editor",
        "layout editor",
        "mask editor",
    ),
    "ExemplarySemanticMapFromMasks": ("masks to segmentation", "combine masks", "segmentation", "class map"),
    "ExemplarySemanticMapRemap": ("segmentation palette", "rename classes", "convert segmentation"),
    "ExemplarySemanticMapToMask": ("segmentation to mask", "mask by class", "mask from color", "hair mask", "face mask"),
    "ExemplarySemanticMapPreview": ("preview segmentation", "show segmentation", "segmentation legend"),
    "ExemplarySegmentImage": (
        "segmentation",
        "auto segmentation",
        "semantic segmentation",
        "face parsing",
        "hair mask",
        "face mask",
    ),
    "ExemplaryLoadSegmentationModel": ("segmentation", "segformer", "face parsing", "upernet"),
    "ExemplaryLoadSemanticMap": ("load segmentation", "load label map"),
    "ExemplarySaveSemanticMap": ("save segmentation", "save label map"),
    # AM-Adapter
    "ExemplaryRetrieveExemplar": ("find reference image", "image retrieval", "similar image", "search images"),
    "ExemplaryLoadAMAdapter": ("reference image", "style transfer", "appearance matching"),
    "ExemplaryApplyAMAdapter": (
        "reference image",
        "style transfer",
        "style reference",
        "appearance transfer",
        "reference only",
        "style per region",
    ),
    "ExemplaryLoadControlNeXt": ("controlnet", "segmentation controlnet", "layout control"),
    "ExemplaryApplyControlNeXt": ("controlnet", "segmentation controlnet", "layout control"),
    "ExemplaryAMMatchPreview": ("correspondence", "matching preview", "attention preview", "reference image preview"),
    # IFAdapter and layouts
    "ExemplaryInstance": ("regional prompt", "box prompt", "region", "bounding box"),
    "ExemplaryInstanceLayout": ("regional prompt", "box prompt", "layout", "layout editor", "draw boxes", "bounding box", "bbox"),
    "ExemplaryInstancesFromBoxes": ("layout", "layout json", "bbox", "detection boxes", "bounding box"),
    "ExemplaryLoadIFAdapter": ("regional prompt", "box prompt", "layout", "instance feature adapter"),
    "ExemplaryApplyIFAdapter": (
        "regional prompt",
        "regional prompter",
        "box prompt",
        "attention couple",
        "layout",
        "area prompt",
        "mask per prompt",
        "gligen",
    ),
    "ExemplaryInstanceMapPreview": ("layout preview", "draw boxes", "preview boxes", "bbox preview"),
    "ExemplaryRegionalReferences": (
        "reference image",
        "reference image per region",
        "regional reference",
        "multiple reference images",
        "regional prompt",
        "image edit",
        "two characters",
    ),
    # Subject fusion (SNF)
    "ExemplaryLoadSubjectModel": ("fastcomposer", "face diffuser", "identity", "two characters", "face"),
    "ExemplarySubjectEncode": ("identity", "face", "reference image", "face reference", "two characters", "person"),
    "ExemplarySNFGuider": ("two models", "two characters", "two loras", "combine models", "blend models", "identity", "face"),
    "ExemplarySNFSampler": ("two models", "two characters", "two loras", "combine models", "blend models", "identity", "face"),
    "ExemplarySaliencyPreview": ("saliency map", "guidance preview", "two models preview"),
    # Paint by Example
    "ExemplaryLoadPaintByExample": ("inpaint with reference", "inpaint", "reference image"),
    "ExemplaryExemplarConditioning": ("inpaint with reference", "image prompt", "reference image"),
    "ExemplaryPaintByExamplePrepare": (
        "inpaint with reference",
        "inpaint",
        "object insertion",
        "replace object",
        "reference image",
    ),
    "ExemplaryPaintByExampleContext": ("inpaint with reference", "inpaint context", "reference image"),
    "ExemplaryStitch": ("inpaint stitch", "paste back", "uncrop", "composite"),
    "ExemplaryCropToEdit": ("inpaint crop", "crop face", "crop by mask", "face align", "crop and stitch"),
    "ExemplaryMaskShape": ("grow mask", "blur mask", "feather mask", "expand mask", "bounding box mask"),
    # CA2-SIS
    "ExemplaryLoadCA2SIS": ("face edit", "face", "hair", "face generator"),
    "ExemplaryCA2SISEncodeStyle": ("face style", "face", "hair color", "style transfer", "makeup transfer"),
    "ExemplaryCA2SISEncodeShape": ("face shape", "hair shape", "face"),
    "ExemplaryCA2SISMixStyles": ("hair color", "hair", "face", "style mixing", "makeup transfer"),
    "ExemplaryCA2SISEditShape": ("hair", "hairstyle", "face shape", "face edit"),
    "ExemplaryCA2SISGenerate": ("face generator", "face", "hair", "segmentation to image"),
    "ExemplaryCA2SISSampleStyle": ("random face", "random style", "face"),
    "ExemplaryCA2SISSaveStyle": ("save face style",),
    "ExemplaryCA2SISLoadStyle": ("load face style",),
    "ExemplaryCA2SISClassConditioning": ("regional prompt", "prompt per class", "mask per prompt", "segmentation prompt"),
    "ExemplaryCA2SISAttention": (
        "regional prompt",
        "attention couple",
        "prompt per class",
        "mask per prompt",
        "segmentation prompt",
        "segmentation to image",
    ),
    "ExemplaryCA2SISAttentionPreview": ("attention map", "cross attention preview", "daam", "regional prompt preview"),
    # Playground and evaluation
    "ExemplaryPlaygroundModels": ("test model", "tiny model", "demo model", "small checkpoint"),
    "ExemplaryPlaygroundScene": ("test image", "demo scene", "synthetic image", "synthetic segmentation"),
    "ExemplaryInstanceSuccess": ("evaluate layout", "detection score", "layout accuracy", "metric"),
    "ExemplaryRegionCLIPScore": ("clip score", "evaluate prompt", "image text similarity", "metric"),
}

_HOST_KNOWS_ALIASES = "search_aliases" in {field.name for field in dataclasses.fields(io.Schema)}


def add_search_aliases(node: type[io.ComfyNode]) -> None:
    """Have the node's schema carry its aliases; does nothing on hosts whose schemas have no such field."""
    if not _HOST_KNOWS_ALIASES:
        return
    define = node.define_schema.__func__  # type: ignore[attr-defined]

    def define_schema(cls) -> io.Schema:
        schema = define(cls)
        schema.search_aliases = list(SEARCH_ALIASES.get(schema.node_id, ()))
        return schema

    node.define_schema = classmethod(define_schema)  # type: ignore[assignment, method-assign]
