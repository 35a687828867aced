"""Frames of a camera in C, looked at by numpy here and by JavaScript in viewer.mjs: viewer.py CAMERA [overwrite|wait].

`wait` copies nothing: both look at the memory in which the camera drew, and the camera waits for the slower one. `overwrite` never holds the
camera up: a viewer that is too slow loses the oldest frames and knows how many; the ring copies each frame once, to be sure that it is whole.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import offloop

FRAMES = 300
FRAME = np.dtype([("number", "<u4"), ("reserved", "<u4"), ("pixels", "u1", (480, 640, 3))])


def main(camera: str, policy: str = "overwrite") -> None:
    ring = offloop.RingBuffer.create("broadcast", capacity=16 << 20, max_participants=3, on_full=policy)
    consumer = ring.consumer()
    fds = list(map(str, ring.fds))
    viewer = subprocess.Popen(["node", Path(__file__).with_name("viewer.mjs"), *fds], pass_fds=ring.fds, stdout=subprocess.PIPE, text=True)
    viewer.stdout.readline()  # it has its place: a viewer sees the frames from its coming on
    numbers: list[int] = []
    torn = 0

    def look(view: memoryview) -> None:
        nonlocal torn
        frame = np.frombuffer(view, FRAME)[0]  # the bytes of the ring, not a copy of them
        number, pixels = int(frame["number"]), frame["pixels"]
        numbers.append(number)
        torn += not (pixels.min() == pixels.max() == number % 256)

    subprocess.Popen([camera, str(FRAMES), *fds], pass_fds=ring.fds)
    try:
        while True:
            consumer.wait()
            consumer.read(16, look)
    except offloop.ClosedError:
        pass
    except offloop.PeerDiedError:
        print(f"the camera died; all of its {len(numbers)} frames that were not overwritten have been seen")
    assert numbers == sorted(set(numbers)), "in order, each once"
    print(f"python: {len(numbers)} seen, {consumer.lost} lost, {torn} torn", flush=True)
    print(viewer.communicate()[0], end="")


if __name__ == "__main__":
    main(*sys.argv[1:])
