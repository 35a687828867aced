"""Frames of a camera from one process to another, as numpy arrays in shared memory: no copy, no pickle."""

import subprocess
import sys
import time

import numpy as np
import offloop

HEIGHT, WIDTH = 480, 640
FRAMES = 500
HEADER = np.dtype([("number", "<u4"), ("sent", "<f8")])
FRAME = np.dtype([("header", HEADER), ("pixels", "u1", (HEIGHT, WIDTH, 3))])


def camera(fds: list[int]) -> None:
    with offloop.RingBuffer.attach(fds) as ring, ring.producer() as producer:
        for n in range(FRAMES):
            # The frame is drawn where the other process will read it. Views of it end with the block.
            with producer.claim(FRAME.itemsize) as view:
                draw(np.frombuffer(view, FRAME), n)
    # The end of the first `with` closes the ring: the viewer drains it and ends.


def draw(frame: np.ndarray, n: int) -> None:
    frame["header"] = (n, time.monotonic())
    frame["pixels"] = n % 256
    frame["pixels"][0, n % HEIGHT, :] = 255


def main() -> None:
    ring = offloop.RingBuffer.create("spsc", capacity=16 * FRAME.itemsize)
    command = [sys.executable, __file__, *map(str, ring.fds)]
    consumer = ring.consumer()
    numbers: list[int] = []
    ages: list[float] = []
    brightest = 0

    def look(view: memoryview) -> None:
        nonlocal brightest
        frame = np.frombuffer(view, FRAME)[0]
        ages.append(time.monotonic() - frame["header"]["sent"])
        numbers.append(int(frame["header"]["number"]))
        brightest = max(brightest, int(frame["pixels"].max()))

    with subprocess.Popen(command, pass_fds=ring.fds):
        try:
            while True:
                if not consumer.read(16, look):
                    consumer.wait()
        except offloop.ClosedError:
            pass
        except offloop.PeerDiedError:
            sys.exit(f"the camera died; all of its {len(numbers)} frames arrived")
    assert numbers == list(range(FRAMES))
    print(f"{len(numbers)} frames of {FRAME.itemsize} bytes, brightest pixel {brightest}, p50 age {np.median(ages) * 1e6:.0f} µs")


if __name__ == "__main__":
    if fds := sys.argv[1:]:
        camera([int(fd) for fd in fds])
    else:
        main()
