"""Semantic maps as files."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..py.host import notices
from ..py.host.semantic import files as host
from ..py.semantic.palettes import PALETTE_NAMES
from ..py.semantic.preview import reading_report
from .semantic_map import CATEGORY, PALETTE_CHOICES, reading_inputs
from .types import SemanticMapType
from .widgets import advanced


class ExemplarySaveSemanticMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplarySaveSemanticMap",
            display_name=host.SAVE,
            category=CATEGORY,
            description="Saves a semantic map as a palette PNG in the output folder: other programs show its colours, and Load Semantic Map "
            "restores every class.",
            inputs=[
                SemanticMapType.Input("semantic_map", tooltip="The map to save; a batch becomes one file per map."),
                io.String.Input(
                    "filename_prefix",
                    default="semantic_map",
                    tooltip="The beginning of the file names, as in Save Image; may contain subfolders.",
                ),
            ],
            outputs=[],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, semantic_map, filename_prefix) -> io.NodeOutput:
        hidden = getattr(cls, "hidden", None)
        prompt, extra = (None, None) if hidden is None else (hidden.prompt, hidden.extra_pnginfo)
        saved = host.save(semantic_map, filename_prefix, prompt, extra)
        results = [ui.SavedResult(name, subfolder, io.FolderType.output) for name, subfolder in saved]
        return io.NodeOutput(ui={"images": results})


class ExemplaryLoadSemanticMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryLoadSemanticMap",
            display_name=host.LOAD,
            category=CATEGORY,
            description="Loads a semantic map from a file. Files of Save Semantic Map are restored exactly; label files of "
            "other programs, including 16-bit and palette PNGs, are read by colours or class numbers.",
            inputs=[
                io.Combo.Input(
                    "image",
                    options=host.files(),
                    upload=io.UploadType.image,
                    image_folder=io.FolderType.input,
                    tooltip="A label file in the input folder. You can also upload one.",
                ),
                io.Combo.Input(
                    "palette",
                    options=PALETTE_CHOICES,
                    default=PALETTE_NAMES[0],
                    tooltip="The classes of the file. Ignored for files of Save Semantic Map, which contain their own classes.",
                ),
                advanced(
                    io.Float.Input(
                        "tolerance",
                        default=32.0,
                        min=0.0,
                        max=442.0,
                        step=1.0,
                        tooltip="Maximum RGB distance (0..255 per channel) between a pixel and the colour of its class; pixels beyond it become "
                        "void.",
                    )
                ),
                *reading_inputs(),
            ],
            outputs=[
                SemanticMapType.Output(display_name="semantic_map", tooltip="The class of every pixel."),
                io.String.Output(display_name="report", tooltip="Coverage of each class, and how the file was read."),
            ],
        )

    @classmethod
    def validate_inputs(cls, image=None, **_) -> bool | str:
        return True if image is None or host.exists(image) else host.missing(image)

    @classmethod
    def fingerprint_inputs(cls, image=None, **_) -> str:
        return host.fingerprint(image)

    @classmethod
    def execute(cls, image, palette, tolerance, reading="automatic", first_class=0) -> io.NodeOutput:
        found = host.load(image, palette, tolerance, reading, first_class)
        if found.notes:
            notices.warn_user(f"{host.LOAD}: {' '.join(found.notes)}")
        report = reading_report(found.semantic_map, found.semantic_map.to_image(), tolerance)
        return io.NodeOutput(found.semantic_map, "\n".join([*found.notes, report]))


NODES = [ExemplarySaveSemanticMap, ExemplaryLoadSemanticMap]
