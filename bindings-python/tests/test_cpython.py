"""CPython's own executor tests, run against offloop's pools."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import offloop
import pytest

HERE = Path(__file__).parent
PROGRAM = HERE / "cpython_executor.py"
TESTS = "test_concurrent_futures.py"
PACKAGE = "libpython3.11-testsuite"
# Where a download is kept.
KEPT = Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent.parent / "target")) / "cpython-tests"


def unpacked(into: Path) -> Path | None:
    """The tests out of Debian's package, without installing it."""
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    steps = [["apt-get", "download", PACKAGE], ["sh", "-c", f"dpkg-deb --extract {PACKAGE}_*.deb ."]]
    for step in steps:
        done = subprocess.run(step, cwd=into, capture_output=True, text=True)
        if done.returncode != 0:
            sys.stderr.write(f"{' '.join(step)}: {done.stderr}\n")
            return None
    return into / "usr/lib/python3.11/test"


@pytest.fixture(scope="module")
def tests(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder that has the tests and nothing else that could be imported instead of something."""
    kept = KEPT / TESTS
    if not kept.is_file():
        places = [Path("/usr/lib/python3.11/test"), unpacked(tmp_path_factory.mktemp("testsuite"))]
        found = next((place / TESTS for place in places if place is not None and (place / TESTS).is_file()), None)
        if found is None:
            pytest.fail(f"CPython's tests are not here, and cannot be got: apt-get update, then apt-get install {PACKAGE}")
        KEPT.mkdir(parents=True, exist_ok=True)
        shutil.copy(found, kept.with_suffix(f".{os.getpid()}"))
        os.replace(kept.with_suffix(f".{os.getpid()}"), kept)
    return str(KEPT)


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the tests are those of CPython 3.11")
@pytest.mark.parametrize(
    ("kind", "least"), [("ThreadPool", 44), ("ProcessPoolSpawn", 59), ("ProcessPoolForkserver", 59), ("ProcessPoolFork", 1)]
)
def test_the_pools_pass_the_tests_of_the_standard_library(tests: str, kind: str, least: int) -> None:
    env = {**os.environ, "PYTHONPATH": f"{Path(offloop.__file__).parent.parent}{os.pathsep}{tests}"}
    done = subprocess.run([sys.executable, PROGRAM, kind], capture_output=True, text=True, env=env, timeout=280)
    assert done.returncode == 0, done.stderr
    ran = re.search(r"Ran (\d+) tests?", done.stderr)
    assert ran is not None
    assert int(ran[1]) >= least
    # What is left out is printed with its reason.
    sys.stdout.write("\n".join(line for line in done.stderr.splitlines() if "skipped" in line or "left out" in line))
