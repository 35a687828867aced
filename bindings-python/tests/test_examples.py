"""The examples and the README run as printed."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import offloop
import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT.parent / "examples" / "python"
NODE = ROOT.parent / "bindings-node"
ENV = {**os.environ, "PYTHONPATH": str(Path(offloop.__file__).parent.parent)}


def test_quickstart():
    done = subprocess.run([sys.executable, EXAMPLES / "quickstart.py"], capture_output=True, text=True, env=ENV, check=True)
    assert "10 tasks" in done.stdout


def test_frames_through_a_ring():
    done = subprocess.run([sys.executable, EXAMPLES / "ring_frames.py"], capture_output=True, text=True, env=ENV, check=True)
    assert "500 frames" in done.stdout


@pytest.mark.skipif(shutil.which("node") is None or not list(NODE.glob("offloop.*.node")), reason="the Node.js library is not built")
def test_a_node_server_that_asks_python(tmp_path):
    # The package resolves from a folder above the example, as from a user's.
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "offloop").symlink_to(NODE)
    shutil.copytree(EXAMPLES.parent, tmp_path / "examples")
    command = ["node", tmp_path / "examples" / "node" / "channel-server.mjs"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**ENV, "PORT": "0", "PYTHON": sys.executable}) as server:
        try:
            port = int(server.stdout.readline().split()[-1])
            for text, counts in [("to be or not to be", {"to": 2, "be": 2, "or": 1, "not": 1}), ("again again", {"again": 2})]:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", data=text.encode(), timeout=60) as answer:
                    assert json.load(answer) == counts
        finally:
            server.send_signal(signal.SIGTERM)
    assert server.returncode == 0


@pytest.mark.skipif(not list((ROOT.parent / "bindings-node").glob("*.node")), reason="the Node.js face is not built")
def test_task_queue_with_nodes_tasks(tmp_path):
    # The example imports the package by its name, as a user's does.
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "offloop").symlink_to(ROOT.parent / "bindings-node")
    for folder, name in (("node", "task-queue.mjs"), ("python", "task_worker.py")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text((EXAMPLES.parent / folder / name).read_text())
    command = ["node", tmp_path / "node" / "task-queue.mjs"]
    done = subprocess.run(command, capture_output=True, text=True, env={**ENV, "PYTHON": sys.executable}, check=True)
    assert done.stdout == "200 tasks: 200 done, 1 of them again after its worker was killed\n"


def test_the_page_about_rings(script):
    for code in re.findall(r"```python\n(.*?)```", (ROOT.parent / "docs" / "rings.md").read_text(), re.DOTALL):
        script(code)


def test_readme(script):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert "907060870\n1024\nca978112" in script(code).stdout


def test_server():
    with subprocess.Popen([sys.executable, EXAMPLES / "server.py"], stdout=subprocess.PIPE, text=True, env=ENV) as server:
        try:
            port = int(server.stdout.readline().split()[-1])
            data = b"some bytes " * 50_000
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", data=data, timeout=60) as answer:
                assert gzip.decompress(answer.read()) == data
        finally:
            server.send_signal(signal.SIGINT)
    assert server.returncode == 0
