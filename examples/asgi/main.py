"""The app of app.py on all cores, under uvicorn: SIGHUP reloads it, SIGTERM and Ctrl-C end it when its requests are answered."""

import signal
import sys
from pathlib import Path

import offloop

signals = {signal.SIGHUP, signal.SIGTERM, signal.SIGINT}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
app = Path(__file__).with_name("app.py")
with offloop.Cluster(app, workers=2, listen=[int(sys.argv[1])]) as cluster:
    while signal.sigwait(signals) == signal.SIGHUP:
        try:
            cluster.reload()
        except offloop.OffloopError as error:
            # What did not come up; the workers of before go on.
            print("not reloaded:", error, file=sys.stderr)
