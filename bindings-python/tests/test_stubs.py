"""The stubs say what the module has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "tool", [["mypy"], ["mypy.stubtest", "offloop._native", "--allowlist", "stubtest-allowlist.txt"]], ids=["mypy", "stubtest"]
)
def test_types(tool):
    pytest.importorskip("mypy")
    env = {**os.environ, "MYPYPATH": "python", "PYTHONPATH": "python"}
    config = [] if tool == ["mypy"] else ["--mypy-config-file", "pyproject.toml"]
    done = subprocess.run([sys.executable, "-m", *tool, *config], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
