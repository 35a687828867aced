"""The examples and the README run as printed."""

from __future__ import annotations

import gzip
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import offloop

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT.parent / "examples" / "python"
ENV = {**os.environ, "PYTHONPATH": str(Path(offloop.__file__).parent.parent)}


def test_quickstart():
    done = subprocess.run([sys.executable, EXAMPLES / "quickstart.py"], capture_output=True, text=True, env=ENV, check=True)
    assert "10 tasks" in done.stdout


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
