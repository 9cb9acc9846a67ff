"""Compares the techniques with recorded numbers: `python3 dev.py conformance FILE...`.

One line an output: its name, the largest difference, the tolerance. The exit code is 0 when every file was compared and
holds, 1 on any miss, 2 when nothing missed but a file's technique is not built yet (PENDING).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from . import registry, rule

VECTORS = Path(__file__).parent / "vectors"
_STRIDE = re.compile(r"(?:tokens|channels) stride (\d+) of axis (\d+)")
_EVERY = re.compile(r"(?:tokens|channels) 0,(\d+),\d+,\.\.\. of axis (\d+)")


@dataclass
class Vector:
    """One file: its metadata, and its tensors by group (`in`, `out`, `w`, `chk`)."""

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, Tensor]

    @property
    def technique(self) -> str:
        return self.metadata["technique"]

    @property
    def case(self) -> str:
        return self.metadata["case"]

    @property
    def seed(self) -> int:
        return int(self.metadata["seed"])

    @property
    def gain(self) -> float:
        return float(self.metadata["gain"])

    def json(self, name: str) -> dict:
        """A metadata entry that is JSON; {} where the file has none."""
        return json.loads(self.metadata.get(name) or "{}")

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors named `<prefix>.*`, without the prefix."""
        return {name[len(prefix) + 1 :]: tensor for name, tensor in self.tensors.items() if name.startswith(prefix + ".")}

    def inputs(self) -> dict[str, Tensor]:
        """Every input: the stored ones (float16 widened) and those made by the rule."""
        stored = {name: value.float() if value.dtype == torch.float16 else value for name, value in self.group("in").items()}
        made = {
            name: rule.rule_input(item["key"], item["shape"], item["kind"], self.seed)
            for name, item in self.json("rule_inputs").items()
        }
        return {**stored, **made}

    def tolerance(self, output: str) -> float:
        """The largest difference allowed; 0 means equal."""
        tolerance = json.loads(self.metadata["tolerance"])
        if isinstance(tolerance, dict):
            return float(tolerance.get(f"out.{output}", 0))  # what has none is a label beside the numbers
        return tolerance * (4 if output == "match_sub" else 1)  # vectors/README.md, B 6


@dataclass
class Verdict:
    """What came of one file. `lines` are (output, difference or complaint, tolerance, holds)."""

    status: str  # "passed", "failed" or "pending"
    lines: list[tuple[str, str, str, bool]] = field(default_factory=list)


def read(path: Path) -> Vector:
    """Read a file of recorded numbers; a ValueError says what is wrong with it."""
    try:
        with safe_open(path, "pt") as file:
            vector = Vector(path, file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path.name} cannot be read as safetensors ({error}).") from error
    missing = [name for name in ("technique", "case", "seed", "gain", "tolerance") if name not in vector.metadata]
    if missing:
        raise ValueError(f"{path.name} holds no recorded case: its metadata lacks {', '.join(missing)}.")
    return vector


def compare(vector: Vector) -> Verdict:
    """Compute a case and compare every recorded output."""
    adapter = registry.find(vector.technique, vector.case)
    if adapter is None:
        return Verdict("pending")
    shapes = adapter.shapes(vector.json("config")) if adapter.shapes else vector.json("weight_keys")
    made = rule.weights(shapes, vector.seed, vector.gain)
    inputs = vector.inputs()
    complaints = check_rule(vector, made, inputs)
    if complaints:
        return Verdict("failed", [("weights and inputs", text, "by the rule", False) for text in complaints])
    with torch.no_grad():
        outputs = adapter.compute(made, inputs, vector.json("config"))
    lines = [_line(vector, name, expected, outputs) for name, expected in sorted(vector.group("out").items())]
    return Verdict("passed" if all(line[3] for line in lines) else "failed", lines)


def check_rule(vector: Vector, made: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> list[str]:
    """Whether the rule was followed, before anything is blamed on a technique."""
    complaints = rule.check_weights(made, vector.json("weight_check"))
    recorded = vector.group("chk")
    if "weights" in recorded:
        complaints += rule.check_table(made, recorded["weights"])
    complaints += [
        f"{key} differs from the stored one"
        for key, value in vector.group("w").items()
        if not torch.allclose(made[key], value, rtol=1e-6, atol=1e-7)
    ]
    for name, table in vector.group("chk.in").items():
        if not rule.check_input(inputs[name], table):
            complaints.append(f"input {name} differs from its recorded first, last, mean and root mean square")
    return complaints


def subsample(value: Tensor, text: str) -> Tensor:
    """The recorded part of an output, from a description such as "tokens stride 4 of axis 1, channels stride 7 of axis 2"."""
    for pattern in (_STRIDE, _EVERY):
        for stride, axis in pattern.findall(text):
            index: list[slice] = [slice(None)] * value.ndim
            index[int(axis)] = slice(None, None, int(stride))
            value = value[tuple(index)]
    return value


def _line(vector: Vector, name: str, expected: Tensor, outputs: Mapping[str, Tensor]) -> tuple[str, str, str, bool]:
    tolerance = vector.tolerance(name)
    allowed = f"{tolerance:g}"
    if name not in outputs:
        return name, "not computed", allowed, False
    found = torch.as_tensor(outputs[name])
    if found.shape != expected.shape:
        found = subsample(found, vector.json("subsample").get(f"out.{name}", ""))
    if found.shape != expected.shape:
        return name, f"shape {list(found.shape)} instead of {list(expected.shape)}", allowed, False
    difference = float((found.double() - expected.double()).abs().max()) if expected.numel() else 0.0
    return name, f"{difference:.3g}", allowed, difference <= tolerance  # a NaN is never within


def main(arguments: list[str]) -> int:
    """Compare the files named, or all files of the folders named."""
    paths = [
        file for name in arguments for file in (sorted(Path(name).glob("*.safetensors")) if Path(name).is_dir() else [Path(name)])
    ]
    counts = {"passed": 0, "failed": 0, "pending": 0}
    for path in paths:
        try:
            vector = read(path)
            verdict = compare(vector)
        except ValueError as error:
            _say(f"FAILED   {error}")
            counts["failed"] += 1
            continue
        counts[verdict.status] += 1
        _say(f"{verdict.status.upper():8} {path.name}  ({vector.technique}, {vector.case})")
        for name, difference, tolerance, holds in verdict.lines:
            _say(f"    {'ok  ' if holds else 'MISS'} {name:24} {difference:>12}  tolerance {tolerance}")
    _say(", ".join(f"{count} {status}" for status, count in counts.items()))
    return 1 if counts["failed"] or not paths else 2 if counts["pending"] else 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
