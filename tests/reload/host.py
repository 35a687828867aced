"""As host.mjs, with a server of asyncio."""

import os
import signal
import sys
from pathlib import Path

import offloop

signals = {signal.SIGHUP, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
cluster = offloop.Cluster(Path(__file__).with_name("server.py"), workers=2, balance=os.environ["BALANCE"], min_ready=0)


def ended(worker, how):
    if how.cause not in ("retire", "stop"):
        print(f"worker {worker.slot} ended: {how.cause} {how.signal} {how.text}", file=sys.stderr)


cluster.on("exit", ended)
with cluster:
    while signal.sigwait(signals) == signal.SIGHUP:
        try:
            forced = cluster.reload().forced
            said = f"{forced} workers were forced to end" if forced else "ok"
        except offloop.OffloopError as error:
            said = str(error)
        Path(os.environ["DONE"]).write_text(said + "\n")
