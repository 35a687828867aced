"""Makes rows and writes them where server.mjs reads them: rows.py ROWS. Started by it, with the ring's fds from 3 on."""

import sys

import offloop

ring = offloop.RingBuffer.attach([3, 4, 5])
try:
    # Rows become visible 4 KiB at a time, or at once while the server has nothing to send.
    with ring.producer(batch=True) as producer:
        for n in range(int(sys.argv[1])):
            producer.push(b'{"row":%d,"square":%d}\n' % (n, n * n))
except offloop.ClosedError:
    pass  # nobody wants the rest
