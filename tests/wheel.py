"""Holds what `make dist` packs for Python to what an installer will do with it: `wheel.py [--sdist]`.

The wheel: auditwheel finds that it needs no library and no symbol beyond the platform in its file name. With `--sdist`: it builds and runs in an
empty virtual environment outside of the repository, which takes minutes.
"""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / "dist/wheels"


def newest(pattern):
    found = sorted(DIST.glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        sys.exit(f"{DIST / pattern} is not there; run `make dist`")
    return found[-1]


def run(*command, **options):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def wheel():
    path = newest("offloop-*.whl")
    named = path.stem.split("-")[-1]
    text = " ".join(run(sys.executable, "-m", "auditwheel", "show", path).split())
    found = re.search(r'consistent with the following platform tag: "(\w+)"', text)
    if not found or not found[1].startswith("manylinux_"):
        sys.exit(f"auditwheel finds no manylinux platform for {path.name}\n{text}")
    if found[1] not in named.split("."):
        sys.exit(f"{path.name} says {named}, auditwheel says {found[1]}")
    if "cp311-abi3" not in path.name:
        sys.exit(f"{path.name} is not for the stable ABI of CPython 3.11 and later")
    with zipfile.ZipFile(path) as files:
        entries = {entry.filename: entry.external_attr >> 16 for entry in files.infolist()}
    if entries.get("offloop/_bin/offloop", 0) & 0o111 != 0o111 or "offloop/_site/sitecustomize.py" not in entries:
        sys.exit(f"{path.name} lacks the command, or its hooks for Python")
    print(f"ok    wheel {path.name}: {found[1]}")


def sdist():
    path = newest("offloop-*.tar.gz")
    with tempfile.TemporaryDirectory(prefix="offloop-sdist-") as folder:
        run(sys.executable, "-m", "venv", "venv", cwd=folder)
        python = Path(folder, "venv/bin/python")
        env = {name: os.environ[name] for name in ("HOME", "PATH", "CARGO_HOME", "RUSTUP_HOME") if name in os.environ}
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", path, cwd=folder, env=env)
        shown = run(python, "-c", "import offloop; print(offloop.ops.crc32(b'hello'))", cwd=folder, env=env)
        if shown.strip() != "907060870":
            sys.exit(f"what {path.name} builds answers {shown!r}")
    print(f"ok    sdist {path.name}: builds and runs in an empty environment")


if __name__ == "__main__":
    sdist() if "--sdist" in sys.argv[1:] else wheel()
