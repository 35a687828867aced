"""The Python side of a ring that ring.mjs made: `send|receive count size batch fds`, with the ring's fds from 3 on.

A receiver says `ready`, then how many records per second came, from the first to the last.
"""

import sys
import time

from offloop import RingBuffer

BATCH = 256
role, count, size, _, fds = sys.argv[1:]
left = int(count)
ring = RingBuffer.attach([3 + i for i in range(int(fds))])
if role == "send":
    records = [b"\x07" * int(size)] * BATCH
    with ring.producer() as producer:
        for _ in range(left // BATCH):
            producer.push_many(records)
else:
    with ring.consumer() as consumer:
        print("ready", flush=True)
        consumer.pop()
        began = time.perf_counter()
        left -= 1
        while left:
            left -= len(consumer.pop_many(min(left, BATCH)))
        print((int(count) - 1) / (time.perf_counter() - began), flush=True)
