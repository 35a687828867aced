"""Reads what a cluster has collected, `[slot:pid] line`, from files or standard input: each line is whole, and those of a process are in its order."""

import fileinput
import json
import re

counts = {}
with fileinput.input() as lines:
    for line in lines:
        slot, pid, text = re.fullmatch(r"\[(\d+):(\d+)\] (.*)\n", line).groups()
        process = f"worker {slot}, process {pid}"
        counts.setdefault(process, 0)
        if json.loads(text)["line"] != counts[process]:
            raise SystemExit(f"{process}: line {counts[process]} is not there: {text}")
        counts[process] += 1
for process, count in sorted(counts.items()):
    print(f"{process}: {count} lines")
print(f"{sum(counts.values())} lines of {len(counts)} processes, whole and in order")
