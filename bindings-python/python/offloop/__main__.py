"""The `offloop` command: `python -m offloop`."""

import signal
import sys

from ._native import _cli


def main() -> int:
    # The core does all of it and blocks: Ctrl-C ends it as it ends any command.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _cli(["offloop", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
