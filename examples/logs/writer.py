"""A process that logs to the collector: writer.py NAME LINES."""

import sys

import offloop

name, lines = sys.argv[1], int(sys.argv[2])
with offloop.RingBuffer.attach(name).producer() as log:
    for n in range(lines):
        log.push(b"python %d answered in %d us\n" % (n, n * 7919 % 1000))
