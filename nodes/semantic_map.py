"""Semantic maps: read from images and masks, segmented, saved and loaded, remapped, and turned into masks and images."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..py.host import notices
from ..py.semantic.masks import mask_of_classes, paint_mask, paint_masks
from ..py.semantic.palettes import PALETTE_NAMES, VOID, named_palette
from ..py.semantic.preview import MUCH_VOID, coverage_text, draw_legend, reading_report, void_warning
from ..py.semantic.reading import READINGS, read_labels
from ..py.semantic.remap import remap
from ..py.semantic.snapping import AUTOMATIC
from .types import SemanticMapType
from .widgets import advanced

CATEGORY = "exemplary/Semantic map"
#: The order of the menu: `AUTOMATIC` was there before the later palettes.
PALETTE_CHOICES = [*PALETTE_NAMES[:5], AUTOMATIC, *PALETTE_NAMES[5:]]

_OWN = "own classes"
_KEEP = "keep"


def reading_inputs() -> list[io.Input]:
    """How label numbers and label colours are distinguished; appended to the nodes that read label images."""
    return [
        io.Combo.Input(
            "reading",
            options=list(READINGS),
            default=READINGS[0],
            optional=True,
            tooltip="colours: the image is drawn in the palette's colours. class numbers: its grey value is the number of the class. automatic "
            "uses class numbers where the image cannot be drawn in colours, and reports it.",
        ),
        advanced(
            io.Int.Input(
                "first_class",
                default=0,
                min=0,
                max=255,
                optional=True,
                tooltip="Class numbers: the grey value of the palette's first class; smaller values and 255 become void. 1 for ADE20K's "
                "annotation files, where 0 means other.",
            )
        ),
    ]


class SemanticMapFromImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplarySemanticMapFromImage",
            display_name="Semantic Map from Image",
            category=CATEGORY,
            description="Reads a segmentation image: every pixel gets the class of its colour (despite JPEG noise and soft edges) or of its class "
            "number.",
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="A segmentation map: one flat colour or grey value per class. Transparent pixels become void.",
                ),
                io.Combo.Input(
                    "palette",
                    options=PALETTE_CHOICES,
                    default=PALETTE_NAMES[0],
                    tooltip="The classes and colours that the map was drawn with. 'colours in this image' makes one class per flat colour, "
                    "named like #804080.",
                ),
                io.Float.Input(
                    "tolerance",
                    default=32.0,
                    min=0.0,
                    max=442.0,
                    step=1.0,
                    tooltip="Maximum RGB distance (0..255 per channel) between a pixel and the colour of its class; pixels beyond it become void. "
                    "0 accepts exact colours only.",
                ),
                io.Boolean.Input(
                    "clean_edges",
                    default=True,
                    tooltip="Assigns blended pixels at an edge to the nearer side, so that no third class appears between two others. Exact "
                    "images are unchanged.",
                ),
                SemanticMapType.Input(
                    "palette_from",
                    optional=True,
                    tooltip="Uses this map's palette instead of the one chosen above, so that labels mean the same class in both maps.",
                ),
                *reading_inputs(),
            ],
            outputs=[
                SemanticMapType.Output(display_name="semantic_map", tooltip="The class of every pixel."),
                io.String.Output(
                    display_name="report",
                    tooltip="Coverage of each class, how the image was read, and a warning if the palette does not fit.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, image, palette, tolerance, clean_edges, palette_from=None, reading=READINGS[0], first_class=0
    ) -> io.NodeOutput:
        found = read_labels(image, palette, tolerance, clean_edges, palette_from, reading, first_class)
        semantic_map, notes = found.semantic_map, list(found.notes)
        void = float(semantic_map.shares()[:, VOID].mean())
        if void > MUCH_VOID:
            notes.append(void_warning(void, semantic_map.palette.name))
        if notes:
            notices.warn_user(f"Semantic Map from Image: {' '.join(notes)}")
        return io.NodeOutput(semantic_map, "\n".join([*found.notes, reading_report(semantic_map, image, tolerance)]))


class SemanticMapFromMasks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplarySemanticMapFromMasks",
            display_name="Semantic Map from Masks",
            category=CATEGORY,
            description="Paints a class where a mask is, or one class per mask of a batch with class_names. Chain nodes through semantic_map; "
            "where masks overlap, the later one wins.",
            inputs=[
                io.Mask.Input("mask", tooltip="Where to paint. A mask with a different size from the map's is resized."),
                io.String.Input(
                    "class_name",
                    default="person",
                    tooltip="The class to paint, for example car; void erases. With the palette 'own classes' any name works, otherwise it must "
                    "be a class of the palette. Unused if class_names is set.",
                ),
                io.Combo.Input(
                    "palette",
                    options=[_OWN, *PALETTE_NAMES],
                    default=_OWN,
                    tooltip="Names and colours of the classes. Only the first node of a chain uses it; the others keep the map's palette.",
                ),
                io.String.Input(
                    "background",
                    default="",
                    tooltip="Class for all pixels that are still void after painting. If empty, they remain void.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.5,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Mask values at or above this threshold are assigned to the class.",
                ),
                SemanticMapType.Input(
                    "semantic_map", optional=True, tooltip="The map to paint on. If not connected, a new map is created."
                ),
                io.String.Input(
                    "class_names",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="For a batch of masks that belong to one image: one class name per mask, separated by commas "
                    "or line breaks. If empty, each mask in the batch becomes a separate map, using class_name.",
                ),
            ],
            outputs=[SemanticMapType.Output(display_name="semantic_map", tooltip="The map with the painted classes.")],
        )

    @classmethod
    def execute(cls, mask, class_name, palette, background, threshold, semantic_map=None, class_names="") -> io.NodeOutput:
        chosen = None if palette == _OWN else named_palette(palette)
        options = {"palette": chosen, "background": background, "threshold": threshold}
        if class_names.strip():
            return io.NodeOutput(paint_masks(semantic_map, mask, class_names, **options))
        return io.NodeOutput(paint_mask(semantic_map, mask, class_name, **options))


class SemanticMapRemap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplarySemanticMapRemap",
            display_name="Semantic Map Remap",
            category=CATEGORY,
            description="Replaces classes by rules, or converts a map to another palette by its class names.",
            inputs=[
                SemanticMapType.Input("semantic_map", tooltip="The map to convert. It is not modified."),
                io.String.Input(
                    "rules",
                    default="",
                    multiline=True,
                    tooltip="One rule per line: car, truck -> bus. * matches every other class: * -> void. A colour "
                    "declares a new class: car, bus -> vehicle #0000ff. A JSON object that maps old to new class "
                    "names also works.",
                ),
                io.Combo.Input(
                    "palette",
                    options=[_KEEP, *PALETTE_NAMES],
                    default=_KEEP,
                    tooltip="keep: classes without a rule are unchanged. Another palette: classes without a rule become "
                    "the class with the same name or a synonym, or void if there is none.",
                ),
                SemanticMapType.Input(
                    "palette_from", optional=True, tooltip="Converts to this map's palette instead of the one chosen above."
                ),
            ],
            outputs=[
                SemanticMapType.Output(display_name="semantic_map", tooltip="The converted map."),
                io.String.Output(
                    display_name="report", tooltip="Lists how each class was converted, and which classes became void."
                ),
            ],
        )

    @classmethod
    def execute(cls, semantic_map, rules, palette, palette_from=None) -> io.NodeOutput:
        target = None if palette == _KEEP else named_palette(palette)
        result = remap(semantic_map, rules, target if palette_from is None else palette_from.palette)
        if result.unmatched:
            notices.warn_user(f"Semantic Map Remap: {result.report().splitlines()[-1]}")
        return io.NodeOutput(result.semantic_map, result.report())


class SemanticMapToMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplarySemanticMapToMask",
            display_name="Semantic Map to Mask",
            category=CATEGORY,
            description="Outputs the pixels of one or more classes as a binary mask.",
            inputs=[
                SemanticMapType.Input("semantic_map", tooltip="The semantic map."),
                io.String.Input(
                    "classes",
                    default="person",
                    multiline=True,
                    tooltip="Class names separated by commas or line breaks, for example: car, bus. * selects every "
                    "class, and void selects the pixels without a class. A class that is not in the map gives an "
                    "empty mask.",
                ),
            ],
            outputs=[io.Mask.Output(display_name="mask", tooltip="1 for pixels of these classes, 0 elsewhere.")],
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
            description="Draws a semantic map: plain, for a segmentation ControlNet, and with a legend of the classes and their coverage.",
            inputs=[SemanticMapType.Input("semantic_map", tooltip="The map to draw.")],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The map in its palette's colours, pixel for pixel."),
                io.Image.Output(display_name="legend", tooltip="The map above a list of its classes and their coverage."),
                io.String.Output(display_name="coverage", tooltip="One line per class: its name and coverage."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, semantic_map) -> io.NodeOutput:
        legend = draw_legend(semantic_map)
        return io.NodeOutput(semantic_map.to_image(), legend, coverage_text(semantic_map), ui=ui.PreviewImage(legend))


NODES = [SemanticMapFromImage, SemanticMapFromMasks, SemanticMapRemap, SemanticMapToMask, SemanticMapPreview]
