"""The development tools without a host: what they say in trouble, and that whatever they start is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import zipfile
from pathlib import Path

import pytest
from pack.devtools import cli, environment, hosts, packages, places, server, testing
from pack.devtools.environment import Environment
from pack.devtools.hosts import Host
from pack.devtools.say import Trouble

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = """
import http.server, json, os, subprocess, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(json.dumps({"child": child.pid, "argv": sys.argv}).encode())
http.server.HTTPServer(("127.0.0.1", port), Answer).serve_forever()
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A folder that looks like ComfyUI and answers like it, with a child process of its own."""
    folder = tmp_path / "host"
    monkeypatch.setattr(server, "RUNS", tmp_path / "runs")
    (folder / "comfy").mkdir(parents=True)
    (folder / "models" / "loras").mkdir(parents=True)
    (folder / "main.py").write_text(STAND_IN)
    (folder / "comfyui_version.py").write_text('__version__ = "9.9.9"\n')
    (folder / "requirements.txt").write_text("torch\ntorchsde\ntorchvision\ntorchaudio>=1\nnumpy>=1.25\n")
    return folder


def answers(url: str) -> dict | None:
    """What the server says, or None when nobody is there."""
    try:
        with server.OPEN(url, timeout=2) as response:
            return json.loads(response.read())
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_server_is_stopped_with_its_children_and_its_folder_goes(stand_in):
    with server.running(Environment(Path(sys.prefix)), hosts.find(str(stand_in), None), "unit") as running:
        said = answers(running.url)
        assert (running.folder / "custom_nodes" / "exemplary" / "nodes").is_dir()
        assert "--cpu" in said["argv"] and "--base-directory" in said["argv"]
        assert json.loads((running.folder / "models.yaml").read_text())["checkout"]["loras"] == "loras"
    assert answers(running.url) is None and not running.folder.exists()
    assert (ROOT / "nodes" / "__init__.py").exists(), "the pack itself is still there"
    if sys.platform.startswith("linux"):
        assert not alive(said["child"])


def test_a_server_is_stopped_when_the_block_fails(stand_in):
    with (
        pytest.raises(KeyboardInterrupt),
        server.running(Environment(Path(sys.prefix)), hosts.find(str(stand_in), None), "unit") as running,
    ):
        raise KeyboardInterrupt
    assert answers(running.url) is None and not running.folder.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGKILL"])
def test_the_server_goes_with_the_process_that_started_it(stand_in, name):
    if name == "SIGKILL" and not sys.platform.startswith("linux"):
        pytest.skip("only Linux ends a child with its killed parent")
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        from devtools import hosts, server
        from devtools.environment import Environment
        server.stop_on_signals()
        with server.running(Environment(Path(sys.prefix)), hosts.find(sys.argv[2], None), "unit-signal") as running:
            print(running.url, flush=True)
            time.sleep(600)
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(ROOT), str(stand_in)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    url = process.stdout.readline().strip()
    assert answers(url)
    process.send_signal(getattr(signal, name))
    process.wait(30)
    deadline = time.monotonic() + 10
    while answers(url) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert answers(url) is None


def test_a_taken_port_is_said(stand_in):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(Trouble, match=f"Port {port} is taken"),
            server.running(Environment(Path(sys.prefix)), hosts.find(str(stand_in), None), "unit", port=port),
        ):
            pass


def test_a_host_that_ends_at_once_shows_its_last_lines(stand_in):
    (stand_in / "main.py").write_text("raise SystemExit('no such thing as a GPU')")
    with (
        pytest.raises(Trouble, match=r"did not start.*\n.*no such thing as a GPU"),
        server.running(Environment(Path(sys.prefix)), hosts.find(str(stand_in), None), "unit"),
    ):
        pass


def test_where_no_link_is_possible_the_pack_is_copied_without_its_runs(stand_in, monkeypatch, tmp_path):
    pack = tmp_path / "pack"
    for part in ("nodes", ".run", ".venv", "output"):
        (pack / part).mkdir(parents=True)
    monkeypatch.setattr(os, "symlink", lambda *a, **k: (_ for _ in ()).throw(OSError("no links here")))
    server._mount(pack, tmp_path / "custom_nodes", "exemplary")
    assert [path.name for path in (tmp_path / "custom_nodes" / "exemplary").iterdir()] == ["nodes"]
    server._remove(tmp_path)
    assert not tmp_path.exists()


@pytest.mark.parametrize(
    "output, said",
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "The disk is full"),
        ("Failed to establish a new connection: [Errno -3] Temporary failure in name resolution", "A download failed"),
        ("ERROR: No matching distribution found for torch==2.14.1", "Use Python 3.10 to 3.13"),
        ("THESE PACKAGES DO NOT MATCH: do not match the hashes", "pip cache purge"),
        ("something else entirely", "pip could not install"),
        # pip warns of the network and then finds nothing: the network is the cause
        ("NewConnectionError ... retrying\nERROR: No matching distribution found for torch", "A download failed"),
    ],
)
def test_pips_failures_are_plain_sentences(output, said, tmp_path):
    assert said in packages.explain(output, tmp_path / "log")


def test_a_failing_pip_is_trouble_and_names_its_log(tmp_path):
    with pytest.raises(Trouble, match="The whole output is in"):
        packages.pip(Path(sys.executable), "no-such-command", log=tmp_path / "log")


def test_torch_is_left_out_of_the_hosts_requirements_and_only_torch(stand_in, monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "RUNS", tmp_path)
    kept = environment._without_torch(hosts.find(str(stand_in), None)).read_text().split()
    assert kept == ["torchsde", "numpy>=1.25"]


def test_steps_are_stamped_and_only_changed_requirements_run_again(stand_in, monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(environment, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(environment, "pip", lambda python, *arguments, log: ran.append(arguments))
    monkeypatch.setattr(environment, "_make", lambda made, base, version: (made.folder.mkdir(), _stamp(made.folder, version)))
    monkeypatch.setattr(environment, "_python_version", lambda python: "3.11")
    host, options = hosts.find(str(stand_in), None), {"python": None, "venv": str(tmp_path / "venv")}
    environment.prepare(host, **options)
    first = len(ran)
    environment.prepare(host, **options)
    assert first == 4 and len(ran) == 4
    (stand_in / "requirements.txt").write_text("numpy>=2\n")
    environment.prepare(host, **options, dev=True)
    assert len(ran) == 6  # the host's and the tests' requirements
    environment.prepare(host, **options)
    environment.prepare(host, **options, dev=True)
    assert len(ran) == 6  # no step has taken another one's stamp


def _stamp(folder: Path, version: str) -> None:
    (folder / environment.STAMP).write_text(json.dumps({"python": version, "steps": {}}))


def test_an_environment_somebody_else_made_is_not_installed_into(stand_in, tmp_path):
    (tmp_path / "theirs").mkdir()
    with pytest.raises(Trouble, match="without a Python in it"):
        environment.prepare(hosts.find(str(stand_in), None), python=None, venv=str(tmp_path / "theirs"))


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["serve", "--host", "no/such/folder"], "is not a ComfyUI checkout"),
        (["serve", "--host-version", "newest"], "is not a ComfyUI release"),
        (["test", "everything"], "There is no test lane 'everything'"),
        (["serve", "--host", ".", "--host-version", "0.3.75"], "exclude each other"),
        (["train", "no_such_technique", "x.json"], "There is no trainer for 'no_such_technique'"),
        (["demo", "--python", "no-such-python", "--venv", "no-such-venv"], "Name an interpreter"),
    ],
)
def test_a_wrong_option_is_said_in_a_sentence_and_not_as_a_traceback(arguments, said, capsys):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert cli.main(arguments) == 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert said in capsys.readouterr().out


def test_a_full_disk_is_said(monkeypatch, capsys):
    def full(*a, **k):
        raise OSError(28, "No space left on device", "some/file")

    monkeypatch.setattr(server, "stop_on_signals", lambda: None)
    monkeypatch.setattr(hosts, "find", full)
    assert cli.main(["serve"]) == 1
    assert "The disk is full (some/file)" in capsys.readouterr().out


def test_an_old_python_is_told_to_be_old(tmp_path):
    """dev.py itself must parse on any Python 3, and say so before it imports anything newer."""
    source = (ROOT / "dev.py").read_text()
    import ast

    ast.parse(source, feature_version=(3, 6))
    old = source.replace("sys.version_info < (3, 10)", "sys.version_info < (99, 0)")
    done = subprocess.run([sys.executable, "-c", old], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "dev.py needs Python 3.10 or newer" in done.stderr


def test_a_release_is_unpacked_without_its_packers_settings(monkeypatch, tmp_path):
    archive = tmp_path / "ComfyUI.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("ComfyUI-1.2.3/main.py", "")
        packed.writestr("ComfyUI-1.2.3/extra_model_paths.yaml", "somebody: else")
        packed.writestr("ComfyUI-1.2.3/tests/extra_model_paths.yaml", "kept: yes")
    monkeypatch.setattr(hosts, "HOSTS", tmp_path / "hosts")
    monkeypatch.setattr(hosts, "ARCHIVE", archive.as_uri().replace("ComfyUI.zip", "{version}.zip"))
    archive.rename(tmp_path / "1.2.3.zip")
    host = Host(tmp_path / "hosts" / "1.2.3", "1.2.3")
    hosts.fetch(host, Path(sys.executable))
    assert (host.folder / "main.py").exists() and not (host.folder / "extra_model_paths.yaml").exists()
    assert (host.folder / "tests" / "extra_model_paths.yaml").exists()
    hosts.fetch(host, Path("not needed any more"))
    with pytest.raises(Trouble, match=r"ComfyUI 4\.5\.6 could not be downloaded"):
        hosts.fetch(Host(tmp_path / "hosts" / "4.5.6", "4.5.6"), Path(sys.executable))


def test_a_damaged_download_is_removed_so_that_the_next_try_can_succeed(tmp_path):
    archive = tmp_path / "damaged.zip"
    archive.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(Trouble, match="damaged"):
        hosts._unpack(archive, "ComfyUI", tmp_path / "folder")
    assert not archive.exists()


def test_every_lane_is_run_and_one_failure_fails_the_whole(monkeypatch, capsys):
    monkeypatch.setattr(testing, "_lint", lambda environment: 1)
    monkeypatch.setattr(testing, "_pytest", lambda environment, host, lane, extra: 0)
    assert testing.run(Environment(Path("x")), Host(Path("y"), "1.2.3"), testing.chosen([]), []) == 1
    said = capsys.readouterr().out
    assert all(lane in said for lane in testing.LANES) and said.count("passed") == len(testing.LANES) - 1


def test_the_ci_runs_the_documented_command():
    script = (ROOT / ".ci" / "run").read_text()
    assert "python3 dev.py test" in script and "CI=true" in script


def test_the_websocket_client_survives_pieces_pings_and_long_messages():
    import socket

    from pack.devtools.websocket import WebSocket

    listening = socket.create_server(("127.0.0.1", 0))
    long = "x" * 70_000

    def serve() -> None:
        connection, _ = listening.accept()
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x02o")
        time.sleep(0.3)
        connection.sendall(b"k\x89\x01p")
        assert connection.recv(16)[0] == 0x8A
        connection.sendall(b"\x01\x03abc\x80\x03def\x82\x02\x00\xff")
        connection.sendall(b"\x81\x7f" + len(long).to_bytes(8, "big") + long.encode() + b"\x88\x00")

    worker = threading.Thread(target=serve)
    worker.start()
    client = WebSocket("127.0.0.1", listening.getsockname()[1], "/ws")
    assert client.receive(0.1) is None  # half a frame: nothing lost
    assert [client.receive(5) for _ in range(4)] == ["ok", "abcdef", b"\x00\xff", long]
    with pytest.raises(ConnectionError):
        client.receive(5)
    worker.join()
    listening.close()


def test_examples_are_found_by_name():
    assert places.examples() == sorted((ROOT / "example_workflows").glob("*.json"))
