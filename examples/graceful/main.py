"""The server of server.py on all cores. SIGTERM and Ctrl-C: what has begun is answered, each worker closes what it has open, and this process ends with status 0."""

import signal
import sys
from pathlib import Path

import offloop

failed = False


def say(line):
    # In one piece: other processes write there as well.
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def ended(worker, how):
    global failed
    say(f"worker {worker.slot} ended: {how.signal or how.exit_code}")
    # It has not finished in time, or failed: then so has this process.
    failed |= how.forced or how.exit_code != 0
    if how.text:
        print(how.text, file=sys.stderr)


signals = {signal.SIGTERM, signal.SIGINT}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
cluster = offloop.Cluster(Path(__file__).with_name("server.py"), args=sys.argv[1:], workers=2, drain_timeout=20)
cluster.on("exit", ended)
with cluster:
    say(f"listening on {sys.argv[1]}, {len(cluster.workers)} workers")
    signal.sigwait(signals)
sys.exit(failed)
