"""The `offloop` command: `python -m offloop`."""

import contextlib
import os
import signal
import sys

from ._native import _cli

_HERE = os.path.dirname(os.path.abspath(__file__))
# The native one, which a wheel has and an installation from source does not.
_BINARY = os.path.join(_HERE, "_bin", "offloop")


def main() -> int:
    os.environ.setdefault("OFFLOOP_PYTHON_HOOKS", os.path.join(_HERE, "_site"))
    # This process becomes it, so that no interpreter stays beside what runs.
    with contextlib.suppress(OSError):
        os.execv(_BINARY, ["offloop", *sys.argv[1:]])
    # The core does all of it and blocks: Ctrl-C ends it as it ends any command.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _cli(["offloop", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
