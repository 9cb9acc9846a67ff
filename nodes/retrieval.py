"""Retrieve the exemplar whose semantic map is most similar to a target map from a folder."""

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
            description="Find the image in a folder whose semantic map is most similar to the target map, and explain the ranking. The folder "
            "is indexed once; later runs read only new and changed files.",
            inputs=[
                SemanticMapType.Input(
                    "target",
                    tooltip="Semantic map to find a reference image (exemplar) for. For a batch, one exemplar is chosen for all maps.",
                ),
                io.String.Input(
                    "folder",
                    default=host.SHIPPED,
                    tooltip="A folder in ComfyUI's input directory, or a full path. Pairs are town.jpg with town_map.png, or the same name in the "
                    "subfolders images and maps. 'playground streets' is a small folder that is included.",
                ),
                io.Combo.Input(
                    "palette",
                    options=[host.AS_TARGET, *PALETTE_NAMES],
                    default=host.AS_TARGET,
                    tooltip="Palette of the maps in the folder. Their classes are matched to the target's by name.",
                ),
                io.Int.Input(
                    "pick",
                    default=1,
                    min=1,
                    max=1000,
                    tooltip="Rank of the first pair to output; 1 is the best. Use 2 if the folder contains the target's image.",
                ),
                io.Int.Input(
                    "count",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Number of pairs to output, starting at pick. The following nodes run once per pair.",
                ),
                _weight(
                    "classes_weight",
                    "Weight of the classes measure: whether the exemplar contains enough of every class of the target.",
                ),
                _weight(
                    "proportions_weight",
                    "Weight of the proportions measure: whether the classes have the same proportions as in the target.",
                ),
                _weight(
                    "layout_weight",
                    "Weight of the layout measure: whether the classes are at the same positions as in the target.",
                ),
                advanced(
                    io.Float.Input(
                        "tie",
                        default=0.02,
                        min=0.0,
                        max=1.0,
                        step=0.005,
                        tooltip="With clip_vision: pairs whose scores differ by at most this value are ordered by image similarity.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "tolerance",
                        default=32.0,
                        min=0.0,
                        max=442.0,
                        step=1.0,
                        tooltip="Maximum distance between the colour of a pixel in a map and the colour of its class, as "
                        "in Semantic Map from Image.",
                    )
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="Orders pairs with nearly equal scores by the similarity of their images to image, or of "
                    "their maps to the target map if image is not connected.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="An image with the appearance you want; orders pairs with nearly equal scores. Needs clip_vision.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", is_output_list=True, tooltip="The retrieved image."),
                SemanticMapType.Output(
                    display_name="semantic_map",
                    is_output_list=True,
                    tooltip="Its semantic map, in the target's palette and the image's size.",
                ),
                io.Float.Output(
                    display_name="score", is_output_list=True, tooltip="Similarity of the maps from 0 to 1; 1 for identical maps."
                ),
                io.String.Output(display_name="report", tooltip="The ranking with its reasons, and the files that were skipped."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder=None, **_) -> str | float:
        if folder is None:  # a connected text is only known when the node runs; NaN differs from itself, so it always runs
            return float("nan")
        return host.fingerprint(folder)

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
