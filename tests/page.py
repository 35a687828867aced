"""The live page of the metrics endpoint in a real browser: `page.py [--screenshot FILE] [--seconds N]`.

`offloop run` keeps two workers of a Node.js server, which clients ask; headless Chromium opens the page. Its rows must have the numbers of `/status`, follow a reload, the end of a
worker and the end of the cluster, ask nobody but the endpoint, and say nothing in the console. Without Chromium, and without a way to install it, the reason is printed and nothing is
checked.
"""

import argparse
import base64
import contextlib
import fcntl
import http.client
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
OFFLOOP = TARGET / "release/offloop"
LIMIT = 60  # seconds after which something hangs
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def browser():
    """The browser's program, or None and why there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found:
        return found, None
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return None, "there is no Chromium: apt-get install chromium"
    for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        try:
            done = subprocess.run(["apt-get", "-qq", *command], capture_output=True, text=True, env=env, timeout=300, check=False)
        except subprocess.TimeoutExpired:
            return None, "Chromium cannot be installed: apt-get takes longer than 300 s"
        if done.returncode != 0:
            return None, f"Chromium cannot be installed: {(done.stderr.strip().splitlines() or ['apt-get failed'])[-1]}"
    return shutil.which(NAMES[0]), None


def until(what, holds):
    end = time.monotonic() + LIMIT
    while not (found := holds()):
        assert time.monotonic() < end, what
        time.sleep(0.05)
    return found


class Browser:
    """One page, driven over the pipe of the DevTools protocol."""

    def __init__(self, program, profile):
        # Above those numbers that the browser expects them at.
        ours = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for pipe in (os.pipe(), os.pipe()) for fd in pipe]
        theirs_in, self._out, self._in, theirs_out = ours
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
        ]
        command = [program, *flags, "--remote-debugging-pipe", f"--user-data-dir={profile}", "--window-size=1000,900", "about:blank"]
        redirect = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        with open(profile / "browser.txt", "w") as said:
            self._process = subprocess.Popen(
                ["bash", "-c", redirect, "bash", *command], pass_fds=(theirs_in, theirs_out), stdout=said, stderr=said
            )
        os.close(theirs_in)
        os.close(theirs_out)
        self._last = 0
        self._rest = b""
        self._session = None
        self.requests = []
        self.complaints = []
        pages = self.call("Target.getTargets")["targetInfos"]
        target = next(page["targetId"] for page in pages if page["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def _message(self):
        while b"\0" not in self._rest:
            assert select.select([self._in], [], [], LIMIT)[0], "the browser says nothing"
            data = os.read(self._in, 1 << 20)
            assert data, "the browser has ended"
            self._rest += data
        one, _, self._rest = self._rest.partition(b"\0")
        return json.loads(one)

    def call(self, method, **params):
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            said = self._message()
            if said.get("id") == self._last:
                assert "error" not in said, said
                return said["result"]
            self._note(said)

    def _note(self, said):
        what, params = said.get("method"), said.get("params", {})
        if what == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif what == "Runtime.consoleAPICalled" or what == "Runtime.exceptionThrown" or what == "Log.entryAdded":
            self.complaints.append(params)

    def value(self, expression):
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def text(self, id):
        return self.value(f"document.getElementById({id!r}).textContent")

    def rows(self):
        cells = "[...document.querySelectorAll('#workers tr')].map((row) => [...row.cells].map((cell) => cell.textContent))"
        names = ("slot", "pid", "state", "generation", "since", "requests", "delay", "cpu", "memory", "restarts")
        return [dict(zip(names, row, strict=True)) for row in self.value(cells)]

    def close(self):
        self._process.terminate()
        self._process.wait(LIMIT)


class Load:
    """Clients that ask without a pause, and stand what a killed worker costs them."""

    def __init__(self, port, clients=2):
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(port,), daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self, port):
        while not self._over.is_set():
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
                for _ in range(20):
                    connection.request("GET", "/")
                    connection.getresponse().read()
                connection.close()
            time.sleep(0.005)

    def end(self):
        self._over.set()
        for thread in self._threads:
            thread.join(LIMIT)


def check(page, metrics, command, screenshot, seconds):
    origin = f"http://{metrics}/"
    page.call("Page.navigate", url=origin)
    rows = until("rows with rates", lambda: [row for row in page.rows() if row["requests"] not in ("–", "0")] and page.rows())
    status = json.loads(get(metrics, "/status"))
    assert [(int(row["slot"]), int(row["pid"])) for row in rows] == [(w["slot"], w["pid"]) for w in status["workers"]], (rows, status)
    assert {row["state"] for row in rows} == {"ready"} and {row["generation"] for row in rows} == {"1"}, rows
    for row in rows:
        assert row["memory"].endswith(" MiB") and row["cpu"].endswith(" %") and row["delay"].endswith(("ms", "s")), row
    assert page.text("name") == "shop" and page.text("state") == "running", page.text("about")
    assert page.text("about").startswith("2 of 2 workers ready at 127.0.0.1:"), page.text("about")
    assert page.value("document.title") == "shop: 2 of 2 ready"
    until("a rate", lambda: page.text("rate") not in ("–", "0"))
    assert float(page.text("rate")) > 0 and page.text("waiting").isdigit(), page.text("waiting")
    lines = "[...document.querySelectorAll('.chart path:not(.under)')]"
    points = lines + ".map((line) => (line.getAttribute('d') ?? '').split(/[ML]/).length - 1)"
    drawn = until("lines", lambda: min(drawn := page.value(points)) >= 3 and drawn)
    assert len(drawn) == 4, drawn

    command("reload", "shop")
    until("the new generation", lambda: {row["generation"] for row in page.rows()} == {"2"})
    os.kill(int(page.rows()[0]["pid"]), signal.SIGKILL)
    until(
        "a restart", lambda: [row["restarts"] for row in page.rows()] == ["1", "0"] and {row["state"] for row in page.rows()} == {"ready"}
    )
    assert page.text("restarts") == "1", page.text("restarts")

    time.sleep(seconds)
    if screenshot:
        page.call("Emulation.setDeviceMetricsOverride", width=1000, height=520, deviceScaleFactor=1, mobile=False)
        page.value("document.fonts.ready.then(() => true)")
        Path(screenshot).write_bytes(base64.b64decode(page.call("Page.captureScreenshot", format="png")["data"]))

    ground = "getComputedStyle(document.body).backgroundColor"
    colors = set()
    for scheme in ("light", "dark"):
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        colors.add(page.value(ground))
    assert len(colors) == 2, colors
    page.call("Emulation.setDeviceMetricsOverride", width=360, height=640, deviceScaleFactor=1, mobile=True)
    assert page.value("document.documentElement.scrollWidth") <= 360, "it is wider than a telephone"

    strangers = [url for url in page.requests if not url.startswith((origin, "data:", "about:"))]
    assert not strangers and f"{origin}status" in page.requests, strangers
    assert not page.complaints, page.complaints
    asked = len(page.requests)

    command("stop", "shop")
    until("the end is told", lambda: page.text("trouble").startswith("The cluster does not answer"))
    return asked


def get(at, path):
    connection = http.client.HTTPConnection(at, timeout=LIMIT)
    connection.request("GET", path)
    return connection.getresponse().read()


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--screenshot", metavar="FILE")
    options.add_argument("--seconds", metavar="N", type=float, default=0, help="how long it goes on before that")
    given = options.parse_args()
    program, why = browser()
    if program is None:
        print(f"skip page: {why}")
        return
    with tempfile.TemporaryDirectory(prefix="offloop-page-", ignore_cleanup_errors=True) as place:
        hooks = {"OFFLOOP_NODE_PRELOAD": str(ROOT / "bindings-node/lib/register.cjs")}
        env = {**os.environ, **hooks, "XDG_RUNTIME_DIR": place}
        server = [OFFLOOP, "run", "--json", "-w", "2", "-n", "shop", "--min-ready", "0.1", "--log", "none", "--metrics", "127.0.0.1:0"]
        run = subprocess.Popen([*server, "--", "node", ROOT / "tests/run/server.js", "0"], env=env, stderr=subprocess.PIPE, text=True)
        page = load = None
        try:
            started = next(event for line in run.stderr if (event := json.loads(line))["event"] == "started")
            threading.Thread(target=run.stderr.read, daemon=True).start()
            load = Load(int(started["listen"][0].rpartition(":")[2]))
            page = Browser(program, Path(place))
            asked = check(
                page,
                started["metrics"],
                lambda *args: subprocess.run([OFFLOOP, *args], env=env, check=True, timeout=LIMIT, stdout=subprocess.DEVNULL),
                given.screenshot,
                given.seconds,
            )
            assert run.wait(LIMIT) == 0
            print(json.dumps({"name": "live page", "requests": asked, "complaints": 0}))
        finally:
            if load:
                load.end()
            if page:
                page.close()
            run.kill()
            run.wait()


if __name__ == "__main__":
    sys.exit(main())
