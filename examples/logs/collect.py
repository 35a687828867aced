"""Collects the log lines of three processes in one file: a writer each in Python, Node.js and C, of which one is killed in the middle.

The writers know the ring by its name, as processes do that were not started by the collector.
"""

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import offloop

LINES = 20_000
HERE = Path(__file__).parent


def main(log: str, c_writer: str) -> None:
    name = f"logs-{os.getpid()}"
    # Each producer has 64 KiB of its own, so none can be LINES ahead of the file.
    ring = offloop.RingBuffer.create("mpsc", path=name, capacity=1 << 16, max_participants=4)
    consumer = ring.consumer()
    commands = {"python": [sys.executable, HERE / "writer.py"], "node": ["node", HERE / "writer.mjs"], "c": [c_writer]}
    writers = {who: subprocess.Popen([*command, name, str(LINES)]) for who, command in commands.items()}

    def close_behind_the_last_writer() -> None:
        for writer in writers.values():
            writer.wait()
        ring.close()  # the collector drains what is there, and ends

    threading.Thread(target=close_behind_the_last_writer).start()
    written: Counter[str] = Counter()
    with open(log, "wb") as file:
        try:
            while True:
                lines = consumer.pop_many(256)  # waits for the first
                file.writelines(lines)
                written.update(line.split(b" ", 1)[0].decode() for line in lines)
                if written["c"] >= LINES // 4:
                    writers["c"].kill()
        except offloop.ClosedError:
            pass
    published = sum(lane["pushed"] for lane in ring.stat()["lanes"])  # what the ring itself has counted
    ring.remove()
    for who, writer in writers.items():
        print(f"{who}: {written[who]} lines{', killed' if writer.returncode == -signal.SIGKILL else ''}")
    print(f"all: {written.total()} lines of {published} that were published")
    sys.exit(written.total() != published)


if __name__ == "__main__":
    main(*sys.argv[1:])
