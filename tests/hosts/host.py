"""A Python program with a pool of processes, under a storm of kills or a mixed load: see main.rs."""

import collections
import contextlib
import gc
import os
import random
import signal
import sys
import time

import numpy
import offloop
import work

ARGS = dict(part.split("=") for part in sys.argv[1:])
RANDOM = random.Random(int(ARGS["seed"]))
WATCHDOG = 120  # seconds; ends a hang, nothing is measured by it


def say(line):
    print(line, flush=True)


def mark(name):
    """The runner looks at this process while nothing runs."""
    gc.collect()
    say(f"mark {name}")
    sys.stdin.readline()


def check(holds, what):
    if not holds:
        raise AssertionError(what)


def life(pid):
    """Which process a number is, if it is a live child: the number of one that is gone may be anybody's."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return f"{pid} {fields[19]}" if int(fields[1]) == os.getpid() and fields[0] != "Z" else None


class Storm:
    """Kills workers until `kills` are dead, each with a task that waits for its end, and others at any point of theirs.

    Every task has one outcome: its own result, or WorkerLost.
    """

    def __init__(self, kills):
        self.pool = offloop.ProcessPool(max_workers=3, concurrency=3)
        self.again = self.pool.options(retries=2)
        self.kills, self.dead, self.number = kills, set(), 0
        self.counts = {"done": 0, "lost": 0, "poison": 0}
        self.flying = collections.deque()
        self.holds = []  # of a future, the process that runs it, and when that is to die

    def submit(self):
        if len(self.dead) >= self.kills:
            return
        while len(self.flying) < 60:
            fn, value = (work.sleep, 2) if self.number % 3 == 2 else (work.echo, self.number)
            pool = self.again if self.number % 5 == 0 else self.pool
            self.flying.append((fn, value, pool.submit(fn, value)))
            self.number += 1
        while len(self.holds) < 3:
            self.holds.append([self.pool.submit(work.hold, None), None, None])
            self.number += 1

    def outcome(self, future):
        """Its result, or None for one that was lost."""
        error = future.exception()
        if error is None:
            self.counts["done"] += 1
            return future.result()
        check(isinstance(error, offloop.WorkerLostError) and error.signal == signal.SIGKILL, repr(error))
        self.counts["lost"] += 1
        self.counts["poison"] += bool(error.poison)
        return None

    def kill(self, hold):
        future, pid, due = hold
        if pid is None and (pid := future.take_progress()) is not None:
            hold[1:] = [pid, time.monotonic() + RANDOM.randrange(6000) / 1e6]
        elif due is not None and time.monotonic() >= due and (victim := life(pid)) is not None:
            with contextlib.suppress(ProcessLookupError):  # it was on its way out
                os.kill(pid, signal.SIGKILL)
                self.dead.add(victim)

    def run(self):
        last = time.monotonic()
        while True:
            self.submit()
            for hold in self.holds:
                self.kill(hold)
            ended = [hold for hold in self.holds if hold[0].done()]
            for hold in ended:
                self.holds.remove(hold)
                check(self.outcome(hold[0]) is None, "hold gave something")
            while self.flying and self.flying[0][2].done():
                fn, value, future = self.flying.popleft()
                got = self.outcome(future)
                check(got is None or got == value, f"{fn.__name__}({value}) gave {got}")
                last = time.monotonic()
            if len(self.dead) >= self.kills and not self.flying and not self.holds:
                break
            check(time.monotonic() - last < WATCHDOG or not self.flying, "a task has no outcome")
            time.sleep(0.0003)
        stats = self.pool.stats
        self.pool.shutdown()
        seen = (self.number, self.counts["done"], self.counts["lost"])
        check((stats.submitted, stats.completed, stats.lost) == seen, f"{stats} of {seen}")
        return {"kills": len(self.dead), "tasks": self.number, **self.counts, "retried": getattr(stats, "retried", 0)}


def values_of_all_sizes():
    values = [{"id": i, "tags": ["a", i]} if i % 2 else i for i in range(200)]
    values += [bytes([RANDOM.randrange(256)]) * 100_000 for _ in range(10)]
    return [*values, numpy.full(1 << 20, RANDOM.randrange(256), "f4")]


def one_round(pool, counts):
    """One round of everything, checked."""
    echoes = [(value, pool.submit(work.echo, value)) for value in values_of_all_sizes()]
    failures = [(i, pool.submit(work.fail, i)) for i in range(20)]
    cancelled = [pool.submit(work.sleep, 1000) for _ in range(10)]
    for future in cancelled:
        if RANDOM.random() < 0.5:
            time.sleep(RANDOM.randrange(3000) / 1e6)
        future.kill()
    for value, future in echoes:
        got = future.result(WATCHDOG)
        check((got == value).all() if isinstance(value, numpy.ndarray) else got == value, f"{type(value)} came back as another")
    for i, future in failures:
        error = future.exception(WATCHDOG)
        check(isinstance(error, IndexError) and str(error) == f"no row {i}", repr(error))
    for future in cancelled:
        try:
            future.result(WATCHDOG)
        except (offloop.CancelledError, TimeoutError) as error:
            check(not isinstance(error, TimeoutError), "a cancelled task has no outcome")
        else:
            check(False, "sleep was not cancelled")
    counts["calls"] += len(echoes) + len(failures) + len(cancelled)
    counts["rounds"] += 1


def renew(pool, counts):
    """The first round of new workers: how old they are, and what they had, would be what is measured."""
    pool.resize(min_workers=0)
    while pool.stats.workers > 0:
        time.sleep(0.01)
    pool.resize(min_workers=2)
    one_round(pool, counts)
    for future in [pool.submit(work.sleep, 100) for _ in range(2)]:
        future.result(WATCHDOG)


def load(seconds, marks):
    pool = offloop.ProcessPool(max_workers=2, min_workers=2, max_tasks_per_child=1000, cancel_grace=5, idle_timeout=0.1)
    counts = {"calls": 0, "rounds": 0}
    # Shared memory that was used once stays: more than there will be at once, so that no later peak is taken for a leak.
    for future in [pool.submit(work.echo, value) for _ in range(6) for value in values_of_all_sizes()]:
        future.result(WATCHDOG)
    start = time.monotonic()
    for n in range(marks):
        while True:
            one_round(pool, counts)
            if time.monotonic() - start >= (n + 1) * seconds / marks:
                break
        renew(pool, counts)
        pool.broadcast(work.collect)
        mark(f"load{n}")
    recycled = getattr(pool.stats, "recycled", 0)
    pool.shutdown()
    return {**counts, "recycled": recycled}


def main():
    if ARGS["role"] == "storm":
        Storm(int(ARGS["warm"])).run()
        mark("before")
        found = Storm(int(ARGS["kills"])).run()
        mark("after")
    else:
        found = load(float(ARGS["seconds"]), int(ARGS["marks"]))
    say("done " + " ".join(f"{key}={n}" for key, n in found.items()))


if __name__ == "__main__":
    try:
        main()
    except BaseException as error:  # noqa: BLE001  every end is a line
        say(f"fail {error!r}".replace("\n", " | "))
        raise
