"""The io types that the pack's nodes exchange, each defined once. The names in capitals are stored in workflows and never change."""

from __future__ import annotations

from comfy_api.latest import io

#: SemanticMap: class labels [b, h, w] with names and colours (py/semantic/semantic_map.py).
SemanticMapType = io.Custom("EXEMPLARY_SEMANTIC_MAP")
#: A loaded segmentation network (py/host/semantic/segmentation.py).
SegmentationModelType = io.Custom("EXEMPLARY_SEGMENTATION_MODEL")
AMAdapterType = io.Custom("EXEMPLARY_AM_ADAPTER")
ControlNeXtType = io.Custom("EXEMPLARY_CONTROLNEXT")
IFAdapterType = io.Custom("EXEMPLARY_IF_ADAPTER")
#: Instances: boxes with phrases (py/ifadapter/instances.py).
InstancesType = io.Custom("EXEMPLARY_INSTANCES")
SubjectFuserType = io.Custom("EXEMPLARY_SUBJECT_FUSER")
ExemplarEncoderType = io.Custom("EXEMPLARY_EXEMPLAR_ENCODER")
#: CropRecord: how a crop is pasted back (py/imaging/crop.py).
StitchType = io.Custom("EXEMPLARY_STITCH")
CA2SISType = io.Custom("EXEMPLARY_CA2SIS")
#: Style and shape codes, one for each class (py/ca2sis/codes.py).
StyleType = io.Custom("EXEMPLARY_STYLE")
ShapeType = io.Custom("EXEMPLARY_SHAPE")
#: Class prompts: the conditioning of each class (py/host/ca2sis/attention.py).
ClassConditioningsType = io.Custom("EXEMPLARY_CLASS_CONDITIONINGS")

#: Boxes as other packs and the host emit them.
BOX_TYPES = [io.Custom(name) for name in ("BBOX", "BOUNDING_BOX", "BOUNDING_BOXES", "SEGS")]
#: The same as plain data: the host's box editor, Florence-2 nodes and others.
DETECTION_TYPES = [io.Custom(name) for name in ("ARRAY", "JSON", "DICT", "LIST")]
