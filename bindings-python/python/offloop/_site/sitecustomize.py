"""What `offloop run` puts first on the module path of its workers: an unmodified program is made a worker before its first line. It takes itself
away, so that what the program starts does not see it, and then loads the `sitecustomize` that would have come without it."""

import importlib
import os
import sys


def _leave(here: str) -> None:
    """This directory is not on the module path, nor in the environment."""
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != here]
    rest = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and os.path.abspath(path) != here]
    if rest:
        os.environ["PYTHONPATH"] = os.pathsep.join(rest)
    else:
        os.environ.pop("PYTHONPATH", None)


def _enter(here: str) -> None:
    # The package need not be one of the program's own.
    root = os.path.dirname(os.path.dirname(here))
    known = root in sys.path
    if not known:
        sys.path.append(root)
    try:
        from offloop import _member

        _member.enter_unmodified()
    except Exception as e:
        sys.stderr.write(f"offloop: this worker runs without the hooks for Python: {e}\n")
    finally:
        if not known:
            sys.path.remove(root)


def _next() -> None:
    """The program's own `sitecustomize`, under its name."""
    own = sys.modules.pop("sitecustomize", None)
    try:
        importlib.import_module("sitecustomize")
    except ImportError as e:
        if e.name != "sitecustomize":
            raise
        if own is not None:
            sys.modules["sitecustomize"] = own


_here = os.path.dirname(os.path.abspath(__file__))
_leave(_here)
if "OFFLOOP_CLUSTER" in os.environ:
    _enter(_here)
_next()
