"""A photo becomes a semantic map."""

from __future__ import annotations

from comfy_api.latest import io

from ..py.host import notices
from ..py.host.semantic import segmentation as host
from ..py.semantic.palettes import PALETTE_NAMES
from ..py.semantic.preview import coverage_text
from .semantic_map import CATEGORY
from .types import SegmentationModelType, SemanticMapType
from .widgets import advanced


class ExemplaryLoadSegmentationModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryLoadSegmentationModel",
            display_name=host.LOAD,
            category=CATEGORY,
            description="Loads a segmentation model from a Hugging Face folder in models/segmentation (SegFormer, Mask2Former, OneFormer, UperNet "
            "and others). Nothing is downloaded.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=host.models(),
                    default=host.DETECTOR,
                    tooltip="A folder in models/segmentation with config.json, preprocessor_config.json and "
                    "model.safetensors. The playground detector ships with the pack and only works on the "
                    "playground's drawn images.",
                ),
                advanced(
                    io.Combo.Input(
                        "precision",
                        options=list(host.PRECISIONS),
                        default="automatic",
                        tooltip="Data type of the weights. automatic: float16 on graphics cards that support it, "
                        "otherwise float32. OneFormer always uses float32.",
                    )
                ),
            ],
            outputs=[
                SegmentationModelType.Output(display_name="segmentation_model", tooltip="The loaded model, for Segment Image.")
            ],
        )

    @classmethod
    def execute(cls, model, precision="automatic") -> io.NodeOutput:
        return io.NodeOutput(host.load(model, precision))


class ExemplarySegmentImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplarySegmentImage",
            display_name=host.SEGMENT,
            category=CATEGORY,
            description="Makes a semantic map of an image with a segmentation model: photos need a model from "
            "models/segmentation, the playground's drawn images need none.",
            inputs=[
                io.Image.Input("image", tooltip="The image to segment, of any size. A batch becomes a batch of maps."),
                io.Combo.Input(
                    "palette",
                    options=[host.AUTOMATIC, *PALETTE_NAMES],
                    default=host.AUTOMATIC,
                    tooltip="automatic: the data set whose classes the model uses, otherwise the model's own class "
                    "names. Another palette: classes are converted by name, or by number if the model has no "
                    "class names.",
                ),
                io.Int.Input(
                    "resolution",
                    default=0,
                    min=0,
                    max=4096,
                    step=32,
                    tooltip="Short side in pixels to which the image or each tile is resized for the model; 0 uses the "
                    "model's default. A higher value finds smaller objects but takes longer.",
                ),
                io.Int.Input(
                    "tile_size",
                    default=0,
                    min=0,
                    max=8192,
                    step=64,
                    tooltip="Segments large images in overlapping square tiles with this side length in pixels, for fine "
                    "detail; 0 processes the whole image at once. Typical: 1024.",
                ),
                advanced(
                    io.Float.Input(
                        "min_confidence",
                        default=0.0,
                        min=0.0,
                        max=1.0,
                        step=0.01,
                        tooltip="Pixels whose best class has a lower probability become void. 0 keeps all.",
                    )
                ),
                SegmentationModelType.Input(
                    "segmentation_model",
                    optional=True,
                    tooltip="From Load Segmentation Model. If not connected, the playground's detector is used, for drawn images.",
                ),
            ],
            outputs=[
                SemanticMapType.Output(display_name="semantic_map", tooltip="The class of every pixel, in the image's size."),
                io.String.Output(
                    display_name="report", tooltip="Coverage of each class, and classes that are missing from the palette."
                ),
            ],
        )

    @classmethod
    def execute(cls, image, palette, resolution, tile_size, min_confidence=0.0, segmentation_model=None) -> io.NodeOutput:
        semantic_map, notes = host.segment(image, segmentation_model, palette, resolution, tile_size, min_confidence)
        if notes:
            notices.warn_user(f"{host.SEGMENT}: {' '.join(notes)}")
        return io.NodeOutput(semantic_map, "\n".join([*notes, coverage_text(semantic_map)]))


NODES = [ExemplaryLoadSegmentationModel, ExemplarySegmentImage]
