"""Readings of an instrument, as a program (`readings.py total 1000`, `readings.py each 1000`) and as functions that a pool calls."""

import json
import sys


def each(count):
    for n in range(count):
        yield {"n": n, "value": n * n % 97}


def total(count):
    return sum(reading["value"] for reading in each(count))


if __name__ == "__main__":
    what, count = sys.argv[1], int(sys.argv[2])
    if what == "total":
        print(total(count))
    else:
        for reading in each(count):
            print(json.dumps(reading))
