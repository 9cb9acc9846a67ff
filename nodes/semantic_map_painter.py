"""The painter: a semantic map drawn or corrected on the node itself."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..py.semantic.painting import apply_painting, describe_map, parse_painting

SemanticMapType = io.Custom("EXEMPLARY_SEMANTIC_MAP")
PAINTING_WIDGET = "EXEMPLARY_PAINTING"  # js/painter_editor.js; without it the input is a socket for any STRING
BACKGROUND = "exemplary_background"  # what the editor looks for in this node's results; no preview appears under these names
INCOMING = "exemplary_map"
NEW = '{"palette": "ADE20K", "classes": [], "labels": ""}'


def _painted(text: io.String.Input) -> io.String.Input:
    text.extra_dict = {"widgetType": PAINTING_WIDGET}  # not an argument: that would change the socket's type too
    return text


class SemanticMapPainter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplarySemanticMapPainter",
            display_name="Semantic Map Painter",
            category="exemplary/Semantic map",
            description="Paint a semantic map on the node, or edit a connected one: brush, fill, polygon, rectangle and "
            "eraser, with the classes of a palette or your own.",
            inputs=[
                io.Int.Input(
                    "width",
                    default=512,
                    min=16,
                    max=8192,
                    step=8,
                    tooltip="Width of the map in pixels. Not used when a semantic map is connected.",
                ),
                io.Int.Input(
                    "height",
                    default=512,
                    min=16,
                    max=8192,
                    step=8,
                    tooltip="Height of the map in pixels. Not used when a semantic map is connected.",
                ),
                _painted(
                    io.String.Input(
                        "painting",
                        default=NEW,
                        tooltip='The painting as JSON: {"palette": "ADE20K", "classes": [{"name": "sky", "color": '
                        '"#06e6e6"}], "labels": an 8-bit PNG as base64}. Each pixel value is the number of its '
                        "class; 254 is void and 255 is unpainted.",
                    )
                ),
                SemanticMapType.Input(
                    "semantic_map",
                    optional=True,
                    tooltip="The map to edit. It appears on the node after a run; unpainted pixels keep its classes.",
                ),
                io.Image.Input(
                    "image", optional=True, tooltip="Shown behind the map while you paint. It does not change the result."
                ),
            ],
            outputs=[
                SemanticMapType.Output(display_name="semantic_map", tooltip="The painted map."),
                io.Image.Output(display_name="image", tooltip="The map in its palette's colours, for a segmentation ControlNet."),
                io.Int.Output(display_name="width", tooltip="Width of the map in pixels."),
                io.Int.Output(display_name="height", tooltip="Height of the map in pixels."),
            ],
            is_output_node=True,  # so that it can be run by itself to show the incoming map
        )

    @classmethod
    def execute(cls, width, height, painting, semantic_map=None, image=None) -> io.NodeOutput:
        result = apply_painting(parse_painting(painting), width, height, semantic_map)
        shown: dict = {}
        if semantic_map is not None:
            shown[INCOMING] = [describe_map(semantic_map)]
        if image is not None:
            shown[BACKGROUND] = ui.PreviewImage(image[:1], cls=cls).as_dict()["images"]
        rows, columns = result.size
        return io.NodeOutput(result, result.to_image(), columns, rows, ui=shown or None)


NODES = [SemanticMapPainter]
