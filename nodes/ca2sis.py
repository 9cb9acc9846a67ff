"""Style and shape, class by class (CA2-SIS, arXiv 2308.16071): pictures and maps to codes, codes edited, codes to pictures."""

from __future__ import annotations

from comfy_api.latest import io

from ..py.ca2sis.checkpoint import FINAL_ACTIVATIONS
from ..py.ca2sis.codes import GROUPS, SHAPE_MODES
from ..py.ca2sis.labels import BY_NAME, ORDERS
from ..py.host import folders
from ..py.host.ca2sis import codes as host
from ..py.host.ca2sis import styles as styles_host
from .types import CA2SISType, SemanticMapType, ShapeType, StyleType
from .widgets import advanced

CATEGORY = "exemplary/CA2-SIS"


def _fraction(name: str, default: float, tooltip: str, most: float = 1.0) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=most, step=0.01, tooltip=tooltip)


def _order() -> io.Combo.Input:
    return advanced(
        io.Combo.Input(
            "label_order",
            options=[BY_NAME, *ORDERS],
            default=BY_NAME,
            tooltip="by name: the map's class names count. Otherwise its numbers are taken in this order, as a face parser gives them.",
        )
    )


def _classes() -> list[io.Input]:
    return [
        io.String.Input(
            "classes",
            default="hair",
            tooltip="Which classes, separated by commas: names of the weights' classes, their numbers, or groups such as expression.",
        ),
        io.Combo.Input(
            "group",
            options=[host.NO_GROUP, *GROUPS],
            default=host.NO_GROUP,
            tooltip="A group of CelebAMask-HQ's classes, besides those named in classes.",
        ),
    ]


class ExemplaryLoadCA2SIS(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryLoadCA2SIS",
            display_name="Load CA2-SIS",
            category=CATEGORY,
            description="Load a generator of CA2-SIS (arXiv 2308.16071) from models/ca2sis. What it is, its weights say. playground_faces ships "
            "with the pack and draws the playground's portraits.",
            inputs=[
                io.Combo.Input(
                    "file", options=folders.files(host.FOLDER), tooltip="A file in models/ca2sis, .pth or .safetensors."
                ),
                advanced(
                    io.Combo.Input(
                        "final_activation",
                        options=list(FINAL_ACTIVATIONS),
                        default=FINAL_ACTIVATIONS[0],
                        tooltip="The last step of the network. auto goes by the age of the file; if the colours look harsh, choose tanh.",
                    )
                ),
            ],
            outputs=[CA2SISType.Output(display_name="ca2sis")],
        )

    @classmethod
    def execute(cls, file, final_activation) -> io.NodeOutput:
        return io.NodeOutput(host.load(file, final_activation))


class ExemplaryCA2SISEncodeStyle(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryCA2SISEncodeStyle",
            display_name="CA2-SIS Encode Style",
            category=CATEGORY,
            description="How each class of a picture looks, as a code for each. Picture and map may have any size of the right proportions.",
            inputs=[
                CA2SISType.Input("ca2sis", tooltip="From Load CA2-SIS."),
                io.Image.Input("image", tooltip="A face that fills the picture, as in CelebA-HQ."),
                SemanticMapType.Input("semantic_map", tooltip="The map of this picture."),
                _order(),
            ],
            outputs=[StyleType.Output(display_name="style")],
        )

    @classmethod
    def execute(cls, ca2sis, image, semantic_map, label_order) -> io.NodeOutput:
        return io.NodeOutput(host.encode_style(ca2sis, image, semantic_map, label_order))


class ExemplaryCA2SISEncodeShape(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryCA2SISEncodeShape",
            display_name="CA2-SIS Encode Shape",
            category=CATEGORY,
            description="Where each class of a map is, as a code for each.",
            inputs=[
                CA2SISType.Input("ca2sis", tooltip="From Load CA2-SIS."),
                SemanticMapType.Input("semantic_map", tooltip="Which class stands where. Any size of the right proportions."),
                _order(),
            ],
            outputs=[ShapeType.Output(display_name="shape")],
        )

    @classmethod
    def execute(cls, ca2sis, semantic_map, label_order) -> io.NodeOutput:
        return io.NodeOutput(host.encode_shape(ca2sis, semantic_map, label_order))


class ExemplaryCA2SISMixStyles(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryCA2SISMixStyles",
            display_name="CA2-SIS Mix Styles",
            category=CATEGORY,
            description="Give some classes the look that they have in another picture: this face with that one's hair.",
            inputs=[
                StyleType.Input("base", tooltip="The style to change. It stays as it is; the output is a new one."),
                StyleType.Input("donor", tooltip="Whose look is taken."),
                *_classes(),
                _fraction("strength", 1.0, "0 the base's look, 1 the donor's, between them a mixture."),
                io.Combo.Input(
                    "if_absent",
                    options=["keep base", "use anyway"],
                    default="keep base",
                    tooltip="A class that the donor does not show has only the code of absence; by default the base keeps its own.",
                ),
            ],
            outputs=[StyleType.Output(display_name="style")],
        )

    @classmethod
    def execute(cls, base, donor, classes, group, strength, if_absent) -> io.NodeOutput:
        kept = "keep" if if_absent == "keep base" else "use"
        return io.NodeOutput(host.mix_styles(base, donor, classes, group, strength, kept))


class ExemplaryCA2SISEditShape(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryCA2SISEditShape",
            display_name="CA2-SIS Edit Shape",
            category=CATEGORY,
            description="Give some classes the place and form that they have in another map. Overlaps and holes are left for the generator.",
            inputs=[
                ShapeType.Input("base", tooltip="The shape to change. It stays as it is; the output is a new one."),
                *_classes(),
                io.Combo.Input(
                    "mode",
                    options=list(SHAPE_MODES),
                    default=SHAPE_MODES[0],
                    tooltip="swap if both: take the donor's where both have the class. replace: also if one has not. add: both together. "
                    "remove: take the class away, no donor needed.",
                ),
                _fraction("strength", 1.0, "0 the base's shape, 1 the edited one, between them a mixture of their codes."),
                ShapeType.Input("donor", optional=True, tooltip="Whose form is taken."),
            ],
            outputs=[ShapeType.Output(display_name="shape")],
        )

    @classmethod
    def execute(cls, base, classes, group, mode, strength, donor=None) -> io.NodeOutput:
        return io.NodeOutput(host.edit_shape(base, donor, classes, group, mode, strength))


class ExemplaryCA2SISGenerate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryCA2SISGenerate",
            display_name="CA2-SIS Generate",
            category=CATEGORY,
            description="Draw the picture of a shape in a style. Its size is that of the weights (256x256 for the published ones).",
            inputs=[
                CA2SISType.Input("ca2sis", tooltip="From Load CA2-SIS."),
                ShapeType.Input("shape", tooltip="Where each class is."),
                StyleType.Input("style", tooltip="How each class looks. One for all shapes, or one each."),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, ca2sis, shape, style) -> io.NodeOutput:
        return io.NodeOutput(host.generate(ca2sis, shape, style))


class ExemplaryCA2SISSampleStyle(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryCA2SISSampleStyle",
            display_name="CA2-SIS Sample Style",
            category=CATEGORY,
            description="A style out of nothing, for the classes that a shape has. Needs weights with a noise network.",
            inputs=[
                CA2SISType.Input("ca2sis", tooltip="From Load CA2-SIS."),
                ShapeType.Input("shape", tooltip="For whose classes styles are made."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Each seed is another style, always the same one.",
                ),
                io.Int.Input("count", default=1, min=1, max=64, tooltip="How many styles at once."),
            ],
            outputs=[StyleType.Output(display_name="style")],
        )

    @classmethod
    def execute(cls, ca2sis, shape, seed, count) -> io.NodeOutput:
        return io.NodeOutput(host.sample_style(ca2sis, shape, seed, count))


class ExemplaryCA2SISSaveStyle(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryCA2SISSaveStyle",
            display_name="CA2-SIS Save Style",
            category=CATEGORY,
            description="Keep a style as a safetensors file in output/ca2sis_styles. No file is ever overwritten.",
            inputs=[
                StyleType.Input("style", tooltip="The style to keep."),
                io.String.Input("name", default="style", tooltip="How the file's name begins; a number follows."),
            ],
            outputs=[io.String.Output(display_name="file")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, style, name) -> io.NodeOutput:
        return io.NodeOutput(styles_host.save(style, name))


class ExemplaryCA2SISLoadStyle(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryCA2SISLoadStyle",
            display_name="CA2-SIS Load Style",
            category=CATEGORY,
            description="A style that was saved before, for the same weights.",
            inputs=[
                io.Combo.Input(
                    "file", options=styles_host.files(), tooltip="A file in output/ca2sis_styles or input/ca2sis_styles."
                )
            ],
            outputs=[StyleType.Output(display_name="style")],
        )

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        return io.NodeOutput(styles_host.load(file))


NODES = [
    ExemplaryLoadCA2SIS,
    ExemplaryCA2SISEncodeStyle,
    ExemplaryCA2SISEncodeShape,
    ExemplaryCA2SISMixStyles,
    ExemplaryCA2SISEditShape,
    ExemplaryCA2SISGenerate,
    ExemplaryCA2SISSampleStyle,
    ExemplaryCA2SISSaveStyle,
    ExemplaryCA2SISLoadStyle,
]
