"""Runs the README's quick starts as printed, in empty folders, from the packed artefacts: `quickstarts.py [--require]`.

Node.js from the npm package, Python from the wheel, C from an installed prefix through pkg-config, Rust against the built
crate. Without `--require` a missing artefact skips its language, with the reason.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
DIST = TARGET / "dist"
RINGS = "Rings and channels"
SHA256_OF_HELLO = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


class Missing(Exception):
    """An artefact is not there."""


def block(heading, lang):
    """The first block of that language under that heading of the README."""
    section = re.search(rf"^### {re.escape(heading)}\n(.*?)(?=^##)", (ROOT / "README.md").read_text(), re.S | re.M)
    found = section and re.search(rf"^```{lang}\n(.*?)^```", section[1], re.S | re.M)
    if not found:
        sys.exit(f"README.md has no {lang} block under {heading}")
    return found[1]


def newest(pattern):
    found = sorted(DIST.glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        raise Missing(f"{DIST / pattern} is not there; run `make dist`")
    return found[-1]


def run(*command, cwd, **env):
    done = subprocess.run([str(c) for c in command], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def node(folder, heading="Node.js"):
    packages = [newest("npm/offloop-[0-9]*.tgz"), *DIST.glob("npm/offloop-linux-*.tgz")]
    (folder / "app.mjs").write_text(block(heading, "js"))
    (folder / "package.json").write_text('{ "private": true }')
    run("npm", "install", "--silent", "--offline", *packages, cwd=folder)
    return run("node", "app.mjs", cwd=folder)


def python(folder, heading="Python"):
    wheel = newest("wheels/offloop-*.whl")
    (folder / "app.py").write_text(block(heading, "python"))
    run(sys.executable, "-m", "venv", "venv", cwd=folder)
    run("venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", wheel, cwd=folder)
    return run("venv/bin/python", "app.py", cwd=folder)


def c(folder, heading="C"):
    prefix = newest("c/lib/pkgconfig/offloop.pc").parents[2]
    (folder / "app.c").write_text(block(heading, "c"))
    # The install line of the README has another prefix; what follows it is the user's.
    flags = run("pkg-config", "--cflags", "--libs", "offloop", cwd=folder, PKG_CONFIG_PATH=str(prefix / "lib/pkgconfig")).split()
    run("cc", "-Wall", "-Wextra", "-Werror", "-o", "app", "app.c", *flags, cwd=folder)
    return run("./app", cwd=folder, LD_LIBRARY_PATH=str(prefix / "lib"))


def rust(folder, heading="Rust"):
    library = TARGET / "release/liboffloop.rlib"
    if not library.exists():
        raise Missing(f"{library} is not there; run `make core`")
    (folder / "main.rs").write_text(block(heading, "rust"))
    link = ["--extern", f"offloop={library}", "-L", f"dependency={TARGET / 'release/deps'}"]
    run("rustc", "--edition", "2024", "-o", "app", *link, "main.rs", cwd=folder)
    return run("./app", cwd=folder)


def main():
    failed = False
    for start in (rust, c, node, python):
        folder = Path(tempfile.mkdtemp(prefix=f"offloop-quickstart-{start.__name__}-"))
        try:
            shown = start(folder)
            wanted = [SHA256_OF_HELLO] if start is not rust else ["timeout: "]
            missing = [text for text in wanted if text not in shown]
            if missing:
                raise AssertionError(f"its output lacks {missing}:\n{shown}")
            if (shown := start(folder, RINGS)) != "hello\n42\n":
                raise AssertionError(f"{RINGS} prints\n{shown}")
            print(f"ok    quick start {start.__name__}")
        except Missing as why:
            failed |= "--require" in sys.argv
            print(f"{'FAIL ' if '--require' in sys.argv else 'skip '} quick start {start.__name__}: {why}")
        except (AssertionError, subprocess.TimeoutExpired) as error:
            failed = True
            print(f"FAIL  quick start {start.__name__}: {error}")
        finally:
            shutil.rmtree(folder)
    return failed


if __name__ == "__main__":
    sys.exit(main())
