"""The command line of dev.py."""

from __future__ import annotations

import argparse
import json
import sys
import time
import webbrowser
from pathlib import Path

from . import environment, hosts, server
from .environment import Environment
from .hosts import Host
from .places import DEFAULT_HOST, in_ci
from .say import Trouble, say

#: Techniques with a trainer, `lab/trainers/<technique>.py`.
TECHNIQUES = ("am_adapter", "ca2sis", "ifadapter", "paint_by_example", "snf")
#: Techniques whose published weights `py/<technique>/checkpoint.py` converts.
CONVERTED = "ifadapter"


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the process's exit code."""
    options = _parser().parse_args(arguments)
    server.stop_on_signals()
    try:
        return options.action(options)
    except Trouble as trouble:
        say(f"\n{trouble}")
        return 1
    except KeyboardInterrupt:
        say("\nStopped.")
        return 130
    except OSError as error:
        if error.errno == 28 or getattr(error, "winerror", None) == 112:
            say(f"\nThe disk is full ({error.filename or 'while writing'}). Free some space and start the same command again.")
            return 1
        raise


def _parser() -> argparse.ArgumentParser:
    place = argparse.ArgumentParser(add_help=False)
    group = place.add_argument_group("which ComfyUI, which Python")
    group.add_argument("--host", metavar="DIR", help="use this ComfyUI checkout; nothing is written into it")
    group.add_argument("--host-version", metavar="X.Y.Z", help=f"download and use this ComfyUI release (default {DEFAULT_HOST})")
    group.add_argument(
        "--python", metavar="EXE", help="make the environment with this interpreter (default: the one that runs dev.py)"
    )
    group.add_argument(
        "--venv", metavar="DIR", help="the environment to make or use; one that dev.py did not make is used untouched"
    )

    parser = argparse.ArgumentParser(prog="dev.py", description="Everything a contributor to Exemplary does, from a bare Python.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, action, text: str, within=commands) -> argparse.ArgumentParser:
        made = within.add_parser(name, help=text, description=text, parents=[place])
        made.set_defaults(action=action)
        return made

    command("demo", _demo, "run every example workflow in a real ComfyUI; images and figures go to output/")
    test = command("test", _test, "lint, then every test")
    test.add_argument("lanes", nargs="*", metavar="LANE", help="only these: lint unit host conformance server browser")
    test.add_argument("-k", metavar="EXPRESSION", help="pytest's -k: only the tests whose name matches")
    test.add_argument("-x", action="store_true", help="stop at the first failing test")
    serve = command("serve", _serve, "open ComfyUI with the pack in the browser")
    serve.add_argument("--port", type=int, help="the port to listen on (default: 8188, or a free one)")
    serve.add_argument("--gpu", action="store_true", help="let ComfyUI use the graphics card")
    serve.add_argument("--no-browser", action="store_true", help="do not open the page")
    command("lint", _lint, "ruff and mypy")
    conformance = command("conformance", _conformance, "compare the techniques with recorded numbers")
    conformance.add_argument(
        "files", nargs="+", metavar="FILE", help="a .safetensors file of recorded numbers, or a folder of them"
    )
    bench = command("bench", _bench, "measure speed, as ratios within one run")
    bench.add_argument("names", nargs="*", metavar="NAME", help="only these benchmarks, by file name")
    playground = _parser_of(commands, "playground", "the small drawn world and the models trained on it")
    train = command("train", _playground_train, "train the playground's models again; resumes where it stopped", playground)
    train.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        metavar="STAGE",
        help="only these: autoencoder base detector image_encoder controlnext matcher ifadapter subject ca2sis paint_by_example",
    )
    evaluate = command("evaluate", _playground_evaluate, "measure what the playground's models and the techniques do", playground)
    evaluate.add_argument("--quick", action="store_true", help="fewer samples")
    own = command("train", _train, "train a technique on your own data, on the graphics card if there is one")
    own.add_argument("technique", metavar="TECHNIQUE", help=", ".join(TECHNIQUES))
    own.add_argument("recipe", metavar="RECIPE", nargs="?", help="a JSON file; without it the fields of a recipe are listed")
    own.add_argument("--processes", type=int, default=1, metavar="N", help="one per graphics card (default: 1)")
    weights = command(
        "convert-weights", _convert_weights, "write a technique's published weights as safetensors, beside the source"
    )
    weights.add_argument("technique", metavar="TECHNIQUE")
    weights.add_argument("file", metavar="FILE")
    weights.add_argument("target", metavar="TARGET", nargs="?", help="another name; a file that is there is never overwritten")
    judged = command("evaluate", _evaluate, "instance success, IoU, AP and CLIP score of folders of images, as a table")
    judged.add_argument(
        "results", nargs="+", metavar="NAME=FOLDER", help="images named as the layouts say; a row of the table each"
    )
    judged.add_argument("--layouts", metavar="FILE", required=True, help="the layouts that they were made from, in COCO's form")
    judged.add_argument(
        "--judge", metavar="DIR", default="playground", help="a zero-shot detector (default: the playground's detector)"
    )
    judged.add_argument("--vlm", metavar="DIR", default="", help="a vision-language model that is asked what is in each box")
    judged.add_argument("--clip", metavar="DIR", default="", help="a CLIP model for the CLIP score, or the word playground")
    bench = command(
        "cocoee", _cocoee, "region CLIP score, CLIP-FID and quality score of results on Paint by Example's test bench"
    )
    bench.add_argument("results", nargs="+", metavar="NAME=FOLDER", help="folders of <number>.png; a row of the table each")
    bench.add_argument("--bench", metavar="DIR", required=True, help="the folder that holds Ref_3500 and Mask_bbox_3500")
    bench.add_argument("--clip", metavar="DIR", required=True, help="a CLIP model; papers use ViT-B/32")
    bench.add_argument("--real", metavar="DIR", help="real images, for CLIP-FID and the quality score")
    convert = command("convert", _convert, "print the API form of a saved workflow")
    convert.add_argument("file", metavar="FILE")
    return parser


def _parser_of(commands, name: str, text: str):
    """A command with subcommands."""
    return commands.add_parser(name, help=text, description=text).add_subparsers(metavar="COMMAND", required=True)


def _ready(options: argparse.Namespace, *, dev: bool = False, fresh: bool = False) -> tuple[Environment, Host]:
    if options.host and options.host_version:
        raise Trouble("--host and --host-version exclude each other: name a checkout or a release, not both.")
    host = hosts.find(options.host, options.host_version)
    return environment.prepare(host, python=options.python, venv=options.venv, dev=dev, fresh=fresh), host


def _demo(options: argparse.Namespace) -> int:
    from . import demo

    return demo.demo(*_ready(options))


def _test(options: argparse.Namespace) -> int:
    from . import testing

    lanes = testing.chosen(options.lanes)
    extra = (["-k", options.k] if options.k else []) + (["-x"] if options.x else [])
    return testing.run(*_ready(options, dev=True, fresh=in_ci()), lanes, extra)


def _lint(options: argparse.Namespace) -> int:
    from . import testing

    return testing.run(*_ready(options, dev=True), ["lint"], [])


def _serve(options: argparse.Namespace) -> int:
    env, host = _ready(options)
    port = options.port or (8188 if server.is_free(8188) else None)
    with server.running(env, host, "serve", port=port, keep=True, cpu=not options.gpu) as running:
        say(f"ComfyUI {host.version} with Exemplary: {running.url}   (Ctrl-C stops it)")
        say(f"Workflows, inputs and outputs are kept in {running.folder}; the log is host.log there.")
        if not options.no_browser:
            webbrowser.open(running.url)
        while running.alive():
            time.sleep(0.5)
        raise Trouble(f"ComfyUI has stopped. Its last lines:\n{running.log_tail()}")


def _conformance(options: argparse.Namespace) -> int:
    from . import testing

    env, host = _ready(options)
    return testing.inside(env, host, "tests.conformance.runner", [str(Path(file).resolve()) for file in options.files])


def _bench(options: argparse.Namespace) -> int:
    from . import figures

    return figures.measure(*_ready(options), kind="speed", names=options.names)


def _playground_train(options: argparse.Namespace) -> int:
    from . import testing

    arguments = [argument for argument in options.arguments if argument != "--"]
    return testing.inside(*_ready(options, dev=True), "lab.playground.train", arguments)


def _playground_evaluate(options: argparse.Namespace) -> int:
    from . import figures

    return figures.measure(*_ready(options), kind="quality", quick=options.quick)


def _train(options: argparse.Namespace) -> int:
    from . import testing

    if options.technique not in TECHNIQUES:
        raise Trouble(f"There is no trainer for {options.technique!r}. Choose one of: {', '.join(TECHNIQUES)}.")
    environment, host = _ready(options, dev=True)
    recipe = [str(Path(options.recipe).resolve())] if options.recipe else []
    return testing.train(environment, host, [options.technique, *recipe], options.processes)


def _convert_weights(options: argparse.Namespace) -> int:
    from . import testing

    if options.technique not in CONVERTED:
        raise Trouble(f"There is nothing to convert for {options.technique!r}. Choose one of: {', '.join(CONVERTED)}.")
    files = [str(Path(file).resolve()) for file in (options.file, options.target) if file]
    return testing.inside(*_ready(options), f"py.{options.technique}.checkpoint", files)


def _evaluate(options: argparse.Namespace) -> int:
    from . import testing

    def full(path: str) -> str:
        return path if path in ("", "playground") else str(Path(path).resolve())

    arguments = [
        "--layouts",
        full(options.layouts),
        "--judge",
        full(options.judge),
        "--vlm",
        full(options.vlm),
        "--clip",
        full(options.clip),
    ]
    for result in options.results:
        name, _, folder = result.rpartition("=")
        arguments.append(f"{name or Path(folder).name}={full(folder)}")
    return testing.inside(*_ready(options), "lab.evaluate.instances", arguments)


def _cocoee(options: argparse.Namespace) -> int:
    from . import testing

    arguments = ["--bench", str(Path(options.bench).resolve()), "--clip", str(Path(options.clip).resolve())]
    arguments += ["--real", str(Path(options.real).resolve())] if options.real else []
    for result in options.results:
        name, _, folder = result.rpartition("=")
        arguments.append(f"{name or Path(folder).name}={Path(folder).resolve()}")
    return testing.inside(*_ready(options), "lab.evaluate.cocoee", arguments)


def _convert(options: argparse.Namespace) -> int:
    from .client import Client
    from .workflow import to_prompt

    stdout, sys.stdout = sys.stdout, sys.stderr  # the progress goes to stderr, the JSON alone to stdout
    try:
        workflow = json.loads(Path(options.file).read_text(encoding="utf-8"))
        with server.running(*_ready(options), "convert") as running:
            prompt = to_prompt(workflow, Client(running.url).object_info())
    finally:
        sys.stdout = stdout
    say(json.dumps(prompt, indent=2))
    return 0
