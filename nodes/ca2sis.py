"""CA2-SIS (arXiv 2308.16071): encode images and semantic maps as one code per class, edit the codes, and generate images from them."""

from __future__ import annotations

from comfy_api.latest import io

from ..py.ca2sis.checkpoint import FINAL_ACTIVATIONS
from ..py.ca2sis.codes import GROUPS, SHAPE_MODES
from ..py.ca2sis.labels import BY_NAME, ORDERS
from ..py.host import folders
from ..py.host.ca2sis import codes as host
from ..py.host.ca2sis import styles as styles_host
from ..py.host.inputs import check_choice
from .types import CA2SISType, SemanticMapType, ShapeType, StyleType
from .widgets import advanced

CATEGORY = "exemplary/CA2-SIS"
IF_ABSENT = ("keep base", "use anyway")


def _fraction(name: str, default: float, tooltip: str, most: float = 1.0) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=most, step=0.01, tooltip=tooltip)


def _order() -> io.Combo.Input:
    return advanced(
        io.Combo.Input(
            "label_order",
            options=[BY_NAME, *ORDERS],
            default=BY_NAME,
            tooltip="by name: classes are matched by name. The other choices use the map's label numbers in the order of that face parser.",
        )
    )


def _classes() -> list[io.Input]:
    return [
        io.String.Input(
            "classes",
            default="hair",
            tooltip="Classes to change, separated by commas: names or numbers of the model's classes, or groups such as expression.",
        ),
        io.Combo.Input(
            "group",
            options=[host.NO_GROUP, *GROUPS],
            default=host.NO_GROUP,
            tooltip="A group of CelebAMask-HQ classes, in addition to those named in classes.",
        ),
    ]


class ExemplaryLoadCA2SIS(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryLoadCA2SIS",
            display_name="Load CA2-SIS",
            category=CATEGORY,
            description="Load a CA2-SIS generator (arXiv 2308.16071) from models/ca2sis. The architecture is detected from the weights. "
            "playground_faces is included and generates the Playground's portraits.",
            inputs=[
                io.Combo.Input(
                    "file", options=folders.files(host.FOLDER), tooltip="A file in models/ca2sis, .pth or .safetensors."
                ),
                advanced(
                    io.Combo.Input(
                        "final_activation",
                        options=list(FINAL_ACTIVATIONS),
                        default=FINAL_ACTIVATIONS[0],
                        tooltip="The network's last activation. auto detects it from the file's version; if the colours look harsh, choose tanh.",
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
            description="Encode the appearance of each class of an image, one style code per class. Image and map may have "
            "any size, but the aspect ratio must match the model's resolution.",
            inputs=[
                CA2SISType.Input("ca2sis", tooltip="From Load CA2-SIS."),
                io.Image.Input("image", tooltip="Image of a face that fills the frame, as in CelebA-HQ."),
                SemanticMapType.Input("semantic_map", tooltip="The semantic map of this image."),
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
            description="Encode the position and shape of each class of a semantic map, one shape code per class.",
            inputs=[
                CA2SISType.Input("ca2sis", tooltip="From Load CA2-SIS."),
                SemanticMapType.Input(
                    "semantic_map",
                    tooltip="Semantic map of the image to generate. Any size is accepted, but the aspect ratio must "
                    "match the model's resolution.",
                ),
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
            description="Give some classes the appearance that they have in another image, for example one face with the hair of another.",
            inputs=[
                StyleType.Input("base", tooltip="The style to change. The output is a copy."),
                StyleType.Input("donor", tooltip="The style to take the classes from."),
                *_classes(),
                _fraction("strength", 1.0, "0 is the base's appearance, 1 the donor's; values between them mix both."),
                io.Combo.Input(
                    "if_absent",
                    options=list(IF_ABSENT),
                    default=IF_ABSENT[0],
                    tooltip="For classes that are not in the donor's image: keep the base's code, or use the model's code for an absent class.",
                ),
            ],
            outputs=[StyleType.Output(display_name="style")],
        )

    @classmethod
    def execute(cls, base, donor, classes, group, strength, if_absent) -> io.NodeOutput:
        kept = "keep" if check_choice(if_absent, host.MIX, "if_absent", IF_ABSENT) == IF_ABSENT[0] else "use"
        return io.NodeOutput(host.mix_styles(base, donor, classes, group, strength, kept))


class ExemplaryCA2SISEditShape(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryCA2SISEditShape",
            display_name="CA2-SIS Edit Shape",
            category=CATEGORY,
            description="Give some classes the position and shape that they have in another map. The generator fills overlaps and holes.",
            inputs=[
                ShapeType.Input("base", tooltip="The shape to change. The output is a copy."),
                *_classes(),
                io.Combo.Input(
                    "mode",
                    options=list(SHAPE_MODES),
                    default=SHAPE_MODES[0],
                    tooltip="swap if both: use the donor's region if both maps have the class. replace: always. add: the union of both regions. "
                    "remove: delete the class; no donor is needed.",
                ),
                _fraction("strength", 1.0, "0 is the base's shape, 1 the edited one; values between them mix the codes."),
                ShapeType.Input("donor", optional=True, tooltip="The shape to take the classes from."),
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
            description="Generate an image from a shape and a style, at the model's resolution (256x256 for the published weights).",
            inputs=[
                CA2SISType.Input("ca2sis", tooltip="From Load CA2-SIS."),
                ShapeType.Input("shape", tooltip="Position and shape of each class, from CA2-SIS Encode Shape."),
                StyleType.Input("style", tooltip="Appearance of each class: one style for all shapes, or one per shape."),
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
            description="Sample a random style for every class present in the shape. Needs weights with a noise network.",
            inputs=[
                CA2SISType.Input("ca2sis", tooltip="From Load CA2-SIS."),
                ShapeType.Input("shape", tooltip="A style is sampled for each class present in this shape."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed for the random style.",
                ),
                io.Int.Input("count", default=1, min=1, max=64, tooltip="Number of styles to sample."),
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
            description="Save a style as a safetensors file in output/ca2sis_styles. Existing files are never overwritten.",
            inputs=[
                StyleType.Input("style", tooltip="The style to save."),
                io.String.Input("name", default="style", tooltip="Beginning of the file name; a number is appended."),
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
            description="Load a saved style. Use it with the weights that it was encoded with.",
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
