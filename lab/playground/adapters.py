"""Trains the techniques' own networks for the playground, inside its finished base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...py.am_adapter.agreement import PAPER_FORMULAS
from ...py.am_adapter.checkpoint import matcher_metadata
from ...py.am_adapter.model import ControlNeXt, Matcher
from ...py.am_adapter.training import init_as_class_bias_
from ...py.ca2sis.checkpoint import facts
from ...py.host import playground
from ...py.host.ifadapter import text as ifadapter_text
from ...py.ifadapter import checkpoint as ifadapter_checkpoint
from ...py.ifadapter.model import IFAdapter
from ...py.snf import checkpoint as snf_checkpoint
from ...py.snf.training import is_trained, is_trained_in_encoder
from ..trainers import am_adapter as am_adapter_training
from ..trainers import ifadapter as ifadapter_training
from . import paint_by_example_networks as paint_by_example_networks
from . import subject_networks as subject_networks
from .export import INITIAL_SEED, finished, finished_base, finished_encoder, ship
from .faces import CLASSES as FACE_CLASSES
from .recipes import am_adapter, ca2sis, ifadapter, image_encoder, paint_by_example, subject

#: In the models' own folders, so that the ordinary Load nodes list them.
CONTROLNEXT_FILE, MATCHER_FILE = "am_adapter/playground_controlnext", "am_adapter/playground_matcher"
CONTROLNEXT_UNET_FILE = "am_adapter/playground_controlnext_unet"  # increments
IFADAPTER_FILE = "ifadapter/playground_ifadapter"
CA2SIS_FILE = "ca2sis/playground_faces"
SUBJECT_FILE = "face_diffuser/playground_subject"


def train_controlnext(folder: Path) -> None:
    """ControlNeXt on streets, inside the finished base model, and what changes in that."""
    unet, text = finished_base()
    before = {name: weight.clone() for name, weight in unet.state_dict().items() if name.startswith(am_adapter.TRAINED)}
    torch.manual_seed(INITIAL_SEED)
    control = ControlNeXt(am_adapter.CONTROLNEXT)
    predict = am_adapter_training.with_control(unet, control)
    am_adapter.train_controlnext(control, unet, predict, text, finished_encoder(), folder)
    ship(CONTROLNEXT_FILE, control.state_dict(), steps=am_adapter.CONTROL_SCHEDULE.steps + am_adapter.JOINT_SCHEDULE.steps)
    now = unet.state_dict()
    # Eight bits are enough for increments: the maps are followed as well as with 16, and all that ships stays within 64 MB.
    increments = {name: (now[name] - weight).to(torch.float8_e5m2) for name, weight in before.items()}
    ship(CONTROLNEXT_UNET_FILE, increments, kind="increments")


def train_matcher(folder: Path) -> None:
    """AM-Adapter's matcher on two views of each street, inside the finished base model with its ControlNeXt."""
    unet, text = finished_base()
    increments = playground.read_weights(CONTROLNEXT_UNET_FILE)
    unet.load_state_dict(
        {name: weight + increments[name].float() if name in increments else weight for name, weight in unet.state_dict().items()}
    )
    control: Any = finished(ControlNeXt(am_adapter.CONTROLNEXT), CONTROLNEXT_FILE)
    torch.manual_seed(INITIAL_SEED)
    matcher = Matcher(am_adapter.MATCHER)
    init_as_class_bias_(matcher)
    predict = am_adapter_training.MatchedUNet(unet, control, matcher)
    am_adapter.train_matcher(matcher, predict, text, finished_encoder(), folder)
    facts = {**matcher_metadata(am_adapter.MATCHER, PAPER_FORMULAS), "steps": am_adapter.MATCHER_SCHEDULE.steps}
    ship(MATCHER_FILE, matcher.state_dict(), **facts)


def train_ifadapter(folder: Path) -> None:
    """The IFAdapter, on the shipped base."""
    unet, text = finished_base()
    clip = playground.load_clip()
    config = ifadapter_training.playground_config(unet)
    torch.manual_seed(INITIAL_SEED)
    network = IFAdapter(config)

    def phrase_features(phrases):
        found = ifadapter_text.encode_for_adapter(clip, phrases, config, "Playground training")
        return found.hidden, found.eot, found.counts

    ifadapter.train(
        network,
        finished_encoder(),
        text,
        phrase_features,
        lambda x, t, context, prepared: ifadapter_training.predict_with(unet, config, x, t, context, prepared),
        folder,
    )
    ship(IFADAPTER_FILE, network.state_dict(), **ifadapter_checkpoint.metadata(config), steps=ifadapter.SCHEDULE.steps)


def train_subject(folder: Path) -> None:
    """The subject model of noise fusion, on the shipped base: only what was trained is in the file."""
    torch.manual_seed(INITIAL_SEED)
    nets = subject_networks.playground_networks(finished_encoder())
    subject.train(nets, folder)
    layers = image_encoder.CONFIG["num_hidden_layers"]
    state = snf_checkpoint.join_partial(
        {key: value for key, value in nets.unet.state_dict().items() if is_trained(key)},
        {key: value for key, value in nets.tower.state_dict().items() if is_trained_in_encoder(key, layers)},
        nets.postfuse.state_dict(),
    )
    ship(SUBJECT_FILE, state, base="playground", steps=subject.SCHEDULE.steps)


def train_ca2sis(folder: Path) -> None:
    """CA2-SIS's generator, on drawn portraits alone."""
    torch.manual_seed(INITIAL_SEED)
    generator = ca2sis.new_generator()
    ca2sis.train(generator, folder)
    ship(CA2SIS_FILE, generator.state_dict(), **facts(ca2sis.CONFIG, FACE_CLASSES), steps=ca2sis.SCHEDULE.steps)


def train_paint_by_example(folder: Path) -> None:
    """Paint by Example, on the shipped base: only what was trained is in the file."""
    torch.manual_seed(INITIAL_SEED)
    nets = paint_by_example_networks.playground_networks(finished_encoder())
    paint_by_example.train(nets, folder)
    paint_by_example_networks.export_weights(nets)


STAGES = {
    "controlnext": train_controlnext,
    "matcher": train_matcher,
    "ifadapter": train_ifadapter,
    "subject": train_subject,
    "paint_by_example": train_paint_by_example,
    "ca2sis": train_ca2sis,
}
