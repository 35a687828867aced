"""CPython's own executor tests, run by an interpreter that ships them."""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import offloop
import pytest

SUITE = Path(__file__).parent / "cpython_executor.py"
CANDIDATES = [
    sys.executable,
    *(found for n in range(12, 20) if (found := shutil.which(f"python3.{n}"))),
    *sorted(glob.glob(os.path.expanduser("~/.pyenv/versions/3.1[2-9]*/bin/python3"))),
]


def ships_the_tests(python):
    code = "import sys, test.test_concurrent_futures.executor; sys.exit(sys.version_info < (3, 12))"
    return subprocess.run([python, "-c", code], capture_output=True).returncode == 0


def test_thread_pool_passes_the_tests_of_thread_pool_executor():
    python = next(filter(ships_the_tests, CANDIDATES), None)
    if python is None:
        pytest.skip("no interpreter here ships test.test_concurrent_futures")
    env = {**os.environ, "PYTHONPATH": str(Path(offloop.__file__).parent.parent)}
    done = subprocess.run([python, SUITE], capture_output=True, text=True, env=env, timeout=280)
    assert done.returncode == 0, done.stderr
    assert int(re.search(r"Ran (\d+) tests", done.stderr)[1]) >= 40
    # What is left out is printed with its reason.
    sys.stdout.write("\n".join(line for line in done.stderr.splitlines() if "skipped" in line))
