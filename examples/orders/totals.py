"""Sums up a CSV of orders by country on all cores, and says how far it is meanwhile: `totals.py FILE`."""

import concurrent.futures
import json
import sys
from pathlib import Path

from offloop import ThreadPool


def show(done):
    print(f"{done:.0%}", end=" ", flush=True)


if len(sys.argv) != 2:
    sys.exit("usage: totals.py FILE")

AGGREGATES = {
    "orders": "count",
    "items": {"fn": "sum", "column": "quantity"},
    "cheapest": {"fn": "min", "column": "price"},
    "mean": {"fn": "mean", "column": "price"},
}

with ThreadPool() as pool:
    data = Path(sys.argv[1]).read_bytes()
    future = pool.submit("csv.aggregate", data, group_by=["country"], aggregates=AGGREGATES, format="json")
    while not concurrent.futures.wait([future], timeout=0.005).done:
        if (done := future.take_progress()) is not None:
            show(done)
    groups = json.loads(future.result())

show(1)
print(f"of {len(data)} bytes")
for group in sorted(groups, key=lambda group: group["country"]):
    print("{country}: {orders} orders, {items} items, from {cheapest}, {mean:.2f} each".format(**group))
