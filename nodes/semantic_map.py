"""Semantic maps: made from pictures or masks, renamed, and turned into masks and pictures."""

from __future__ import annotations

import logging

from comfy_api.latest import io, ui

from ..py.semantic.masks import mask_of_classes, paint_mask
from ..py.semantic.palettes import PALETTE_NAMES, VOID, named_palette
from ..py.semantic.preview import MUCH_VOID, coverage_text, legend_picture, reading_report, void_warning
from ..py.semantic.remap import remap
from ..py.semantic.snapping import AUTOMATIC, choose_palette, snap_to_palette
from .types import SemanticMapType

CATEGORY = "exemplary/semantic map"

_OWN = "own classes"
_KEEP = "keep"

log = logging.getLogger("exemplary")


class SemanticMapFromImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplarySemanticMapFromImage",
            display_name="Semantic Map from Image",
            category=CATEGORY,
            description="Read a coloured segmentation picture: each pixel becomes the class whose colour it has, in spite of JPEG noise "
            "and soft edges.",
            inputs=[
                io.Image.Input(
                    "image", tooltip="A segmentation map: one flat colour for each class. Transparent places become void."
                ),
                io.Combo.Input(
                    "palette",
                    options=[*PALETTE_NAMES, AUTOMATIC],
                    default=PALETTE_NAMES[0],
                    tooltip="The colours that the map was drawn with. 'colours in this image' makes a class of every flat colour and names "
                    "it by its colour, like #804080.",
                ),
                io.Float.Input(
                    "tolerance",
                    default=32.0,
                    min=0.0,
                    max=442.0,
                    step=1.0,
                    tooltip="How far a pixel may be from its class's colour (distance in RGB, 0..255 a channel). Farther ones become void. "
                    "0 accepts exact colours only.",
                ),
                io.Boolean.Input(
                    "clean_edges",
                    default=True,
                    tooltip="Let mixed pixels at an edge take the class of the nearer side. Otherwise they may show a third class. "
                    "Exact pictures are not changed.",
                ),
                SemanticMapType.Input(
                    "palette_from",
                    optional=True,
                    tooltip="Use this map's palette instead of the one chosen above, so that the same label means the same class in both.",
                ),
            ],
            outputs=[
                SemanticMapType.Output(display_name="semantic_map", tooltip="Which class stands where."),
                io.String.Output(
                    display_name="report", tooltip="How much each class covers, and a warning if the palette does not fit."
                ),
            ],
        )

    @classmethod
    def execute(cls, image, palette, tolerance, clean_edges, palette_from=None) -> io.NodeOutput:
        chosen = choose_palette(image, palette, tolerance, palette_from)
        semantic_map = snap_to_palette(image, chosen, tolerance, clean_edges)
        void = float(semantic_map.shares()[:, VOID].mean())
        if void > MUCH_VOID:
            log.warning("Semantic Map from Image: %s", void_warning(void, chosen.name))
        return io.NodeOutput(semantic_map, reading_report(semantic_map, image, tolerance))


class SemanticMapFromMasks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplarySemanticMapFromMasks",
            display_name="Semantic Map from Masks",
            category=CATEGORY,
            description="Paint one class where a mask is. Chain one node for each class through semantic_map; where masks overlap, the "
            "later one wins.",
            inputs=[
                io.Mask.Input("mask", tooltip="Where the class stands. A mask of another size than the map is resized."),
                io.String.Input(
                    "class_name",
                    default="person",
                    tooltip="The class to paint, for example: car. The word void erases. With the palette 'own classes' any name will do; "
                    "otherwise it must be a class of the palette.",
                ),
                io.Combo.Input(
                    "palette",
                    options=[_OWN, *PALETTE_NAMES],
                    default=_OWN,
                    tooltip="Names and colours of the classes. Only the first node of a chain uses it; the others go on with the map's.",
                ),
                io.String.Input(
                    "background",
                    default="",
                    tooltip="The class for every place that is still without one after painting. Empty leaves them void.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.5,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="A soft mask counts where it is at least this.",
                ),
                SemanticMapType.Input("semantic_map", optional=True, tooltip="The map to paint on. Leave it open to begin one."),
            ],
            outputs=[SemanticMapType.Output(display_name="semantic_map", tooltip="The map with the class painted in.")],
        )

    @classmethod
    def execute(cls, mask, class_name, palette, background, threshold, semantic_map=None) -> io.NodeOutput:
        chosen = None if palette == _OWN else named_palette(palette)
        return io.NodeOutput(
            paint_mask(semantic_map, mask, class_name, palette=chosen, background=background, threshold=threshold)
        )


class SemanticMapRemap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplarySemanticMapRemap",
            display_name="Semantic Map Remap",
            category=CATEGORY,
            description="Give classes other classes by rules, or take the map to another palette by the names of its classes.",
            inputs=[
                SemanticMapType.Input("semantic_map", tooltip="The map to change. It stays as it is; the output is a new map."),
                io.String.Input(
                    "rules",
                    default="",
                    multiline=True,
                    tooltip="One rule a line: car, truck -> bus. A star means every other class: * -> void. A new class is declared by its "
                    "colour: car, bus -> vehicle #0000ff. JSON works too: an object of from and to.",
                ),
                io.Combo.Input(
                    "palette",
                    options=[_KEEP, *PALETTE_NAMES],
                    default=_KEEP,
                    tooltip="keep: classes without a rule stay. Another palette: they go to its class of the same name or meaning, or to "
                    "void if it has none.",
                ),
                SemanticMapType.Input(
                    "palette_from", optional=True, tooltip="Go to this map's palette instead of the one chosen above."
                ),
            ],
            outputs=[
                SemanticMapType.Output(display_name="semantic_map", tooltip="The map with its new classes."),
                io.String.Output(display_name="report", tooltip="Which class became which, and what found no class."),
            ],
        )

    @classmethod
    def execute(cls, semantic_map, rules, palette, palette_from=None) -> io.NodeOutput:
        target = None if palette == _KEEP else named_palette(palette)
        result = remap(semantic_map, rules, target if palette_from is None else palette_from.palette)
        if result.unmatched:
            log.warning("Semantic Map Remap: %s", result.report().splitlines()[-1])
        return io.NodeOutput(result.semantic_map, result.report())


class SemanticMapToMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplarySemanticMapToMask",
            display_name="Semantic Map to Mask",
            category=CATEGORY,
            description="The places of one or several classes as a hard mask.",
            inputs=[
                SemanticMapType.Input("semantic_map", tooltip="Which class stands where."),
                io.String.Input(
                    "classes",
                    default="person",
                    multiline=True,
                    tooltip="Class names separated by commas or lines, for example: car, bus. A star means every class, void the rest. "
                    "A class that the map does not show gives an empty mask.",
                ),
            ],
            outputs=[io.Mask.Output(display_name="mask", tooltip="1 where one of the classes stands, 0 elsewhere.")],
        )

    @classmethod
    def execute(cls, semantic_map, classes) -> io.NodeOutput:
        return io.NodeOutput(mask_of_classes(semantic_map, classes))


class SemanticMapPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplarySemanticMapPreview",
            display_name="Semantic Map Preview",
            category=CATEGORY,
            description="Draw a semantic map: plain, for a segmentation ControlNet, and with a legend that says what covers how much.",
            inputs=[SemanticMapType.Input("semantic_map", tooltip="The map to draw.")],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The map in its palette's colours, pixel for pixel."),
                io.Image.Output(display_name="legend", tooltip="The map above the list of its classes and their coverage."),
                io.String.Output(display_name="coverage", tooltip="One line a class: its name and how much it covers."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, semantic_map) -> io.NodeOutput:
        legend = legend_picture(semantic_map)
        return io.NodeOutput(semantic_map.to_image(), legend, coverage_text(semantic_map), ui=ui.PreviewImage(legend))


NODES = [SemanticMapFromImage, SemanticMapFromMasks, SemanticMapRemap, SemanticMapToMask, SemanticMapPreview]
