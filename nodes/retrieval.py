"""The exemplar of a folder that suits a semantic map best."""

from __future__ import annotations

from comfy_api.latest import io

from ..py.host.semantic import retrieval as host
from ..py.semantic.palettes import PALETTE_NAMES
from ..py.semantic.retrieval import Weights
from .semantic_map import CATEGORY
from .types import SemanticMapType
from .widgets import advanced


def _weight(name: str, tooltip: str) -> io.Input:
    return advanced(io.Float.Input(name, default=1.0, min=0.0, max=10.0, step=0.05, tooltip=tooltip))


class ExemplaryRetrieveExemplar(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExemplaryRetrieveExemplar",
            display_name="Retrieve Exemplar",
            category=CATEGORY,
            description="Look through a folder of pictures with their maps for the one that suits a target map best, and say why. The folder "
            "is indexed once; later runs read only what changed.",
            inputs=[
                SemanticMapType.Input(
                    "target", tooltip="The map that needs an exemplar. A batch gets one exemplar that suits all its maps."
                ),
                io.String.Input(
                    "folder",
                    default=host.SHIPPED,
                    tooltip="A folder below ComfyUI's input directory, or a full path. Pairs are town.jpg with town_map.png, or one name in the "
                    "subfolders images and maps. 'playground streets' is a small one that ships.",
                ),
                io.Combo.Input(
                    "palette",
                    options=[host.AS_TARGET, *PALETTE_NAMES],
                    default=host.AS_TARGET,
                    tooltip="The colours that the folder's maps were drawn with. Classes are matched to the target's by name.",
                ),
                io.Int.Input(
                    "pick",
                    default=1,
                    min=1,
                    max=1000,
                    tooltip="Which place of the ranking to take; 1 is the best. Take 2 if the folder holds the target's own picture.",
                ),
                io.Int.Input(
                    "count",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="How many pairs to take, from pick on. The nodes behind run once for each.",
                ),
                _weight("classes_weight", "How much it counts that the exemplar shows enough of every class of the target."),
                _weight("proportions_weight", "How much it counts that the classes cover as much as in the target."),
                _weight("layout_weight", "How much it counts that the classes stand in the same places."),
                advanced(
                    io.Float.Input(
                        "tie",
                        default=0.02,
                        min=0.0,
                        max=1.0,
                        step=0.005,
                        tooltip="With clip_vision: pairs whose scores differ by no more than this tie, and image features order them.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "tolerance",
                        default=32.0,
                        min=0.0,
                        max=442.0,
                        step=1.0,
                        tooltip="How far a pixel of a folder's map may be from its class's colour, as in Semantic Map from Image.",
                    )
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="Decides between pairs that tie: by the likeness of their pictures to image, or without one of the drawn maps.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="A picture in the look you want. Needs clip_vision; it decides between pairs that tie.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", is_output_list=True, tooltip="The exemplar's picture."),
                SemanticMapType.Output(
                    display_name="semantic_map",
                    is_output_list=True,
                    tooltip="The exemplar's map, in the target's palette and the picture's size.",
                ),
                io.Float.Output(
                    display_name="score", is_output_list=True, tooltip="How well it suits: 1 is the target's own map."
                ),
                io.String.Output(
                    display_name="report", tooltip="The ranked list with the reasons, and which files were skipped."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder=None, **_) -> str | float:
        return (
            float("nan") if folder is None else host.fingerprint(folder)
        )  # nan: a connected text is known only when the node runs

    @classmethod
    def execute(
        cls,
        target,
        folder,
        palette,
        pick,
        count,
        classes_weight,
        proportions_weight,
        layout_weight,
        tie,
        tolerance,
        clip_vision=None,
        image=None,
    ) -> io.NodeOutput:
        choice = host.Choice(pick, count, Weights(classes_weight, proportions_weight, layout_weight), tie)
        found = host.retrieve(target, folder, palette, tolerance, choice, clip_vision, image)
        return io.NodeOutput(found.images, found.maps, found.scores, found.report)


NODES = [ExemplaryRetrieveExemplar]
