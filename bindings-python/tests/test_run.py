"""What makes an unmodified program a worker under `offloop run`: the `sitecustomize` that goes first, and how such a worker leaves. `tests/run` has whole servers."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import offloop

SITE = str(Path(offloop.__file__).parent / "_site")


def python(code, tmp_path, **env):
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OFFLOOP_", "PYTHON"))}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**own, **env})
    return done.returncode, done.stdout, done.stderr


def test_a_program_that_no_cluster_has_started_sees_nothing_of_it(tmp_path):
    code = """
        import os, sys
        assert "offloop" not in sys.modules and not any("_site" in path for path in sys.path), sys.path
        print(os.environ.get("PYTHONPATH"))
    """
    assert python(code, tmp_path, PYTHONPATH=SITE) == (0, "None\n", "")
    assert python(code, tmp_path, PYTHONPATH=f"{SITE}{os.pathsep}{tmp_path}") == (0, f"{tmp_path}\n", "")


def test_the_sitecustomize_that_would_have_come_is_loaded(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import builtins\nbuiltins.OWN = __file__\n")
    status, out, err = python(
        "import sitecustomize; print(OWN, sitecustomize.__file__)", tmp_path, PYTHONPATH=f"{SITE}{os.pathsep}{tmp_path}"
    )
    assert (status, err) == (0, "")
    assert out == f"{tmp_path / 'sitecustomize.py'} {tmp_path / 'sitecustomize.py'}\n"
    (tmp_path / "sitecustomize.py").write_text("import no_such_module\n")
    # As without ours: the interpreter says so and goes on.
    status, out, err = python("print('on')", tmp_path, PYTHONPATH=f"{SITE}{os.pathsep}{tmp_path}")
    assert (status, out) == (0, "on\n")
    assert "no_such_module" in err


def test_a_program_that_cannot_be_made_a_worker_says_why_and_goes_on(tmp_path):
    env = {"PYTHONPATH": SITE, "OFFLOOP_CLUSTER": "3,0", "OFFLOOP_SUPERVISOR": "nonsense"}
    status, out, err = python("print('on')", tmp_path, **env)
    assert (status, out) == (0, "on\n")
    assert err.startswith("offloop: this worker runs without the hooks for Python: ")
    assert "OFFLOOP_SUPERVISOR" in err


PREFORK = """
    import os, signal, socket, subprocess, sys, time
    # What the hooks leave to an unmodified program, and what they do not.
    print({name: os.environ.get(name) for name in ("PYTHONPATH", "OFFLOOP_CLUSTER", "LISTEN_FDS")}, file=open(sys.argv[1], "w"))
    child = subprocess.Popen(["sleep", "60"])
    def leave(signal, frame):
        child.terminate()
        child.wait()
        open(sys.argv[1], "a").write("left")
        sys.exit(0)
    signal.signal(signal.SIGTERM, leave)
    # It is ready with this.
    server = socket.create_server(("127.0.0.1", 0))
    while True:
        time.sleep(0.05)
"""


def test_a_server_with_processes_of_its_own_is_told_by_sigterm(tmp_path):
    script, said = tmp_path / "server.py", tmp_path / "said"
    script.write_text(textwrap.dedent(PREFORK))
    exits = []
    cluster = offloop.Cluster([sys.executable, str(script), str(said)], workers=1, listen=["127.0.0.1:0"], env={"PYTHONPATH": SITE})
    cluster.on("exit", lambda worker, how: exits.append((how.cause, how.exit_code, how.forced)))
    with cluster:
        assert said.read_text() == "{'PYTHONPATH': None, 'OFFLOOP_CLUSTER': None, 'LISTEN_FDS': '1'}\n"
    assert exits == [("stop", 0, False)]
    assert said.read_text().endswith("left")


def test_who_finds_that_its_socket_listens_already_is_ready(tmp_path):
    # gunicorn does not listen then.
    code = """
        import socket, time
        given = socket.fromfd(3, socket.AF_INET, socket.SOCK_STREAM)
        assert given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        while True:
            time.sleep(0.05)
    """
    script = tmp_path / "server.py"
    script.write_text(textwrap.dedent(code))
    with offloop.Cluster([sys.executable, str(script)], workers=1, listen=["127.0.0.1:0"], env={"PYTHONPATH": SITE}) as cluster:
        assert cluster.stats.ready == 1


def test_a_socket_of_a_number_may_be_taken_for_one_of_another_family(tmp_path):
    # `uvicorn --fd` does that.
    code = """
        import asyncio, os, socket
        async def main():
            sock = socket.fromfd(3, socket.AF_UNIX, socket.SOCK_STREAM)
            server = await asyncio.get_running_loop().create_server(asyncio.Protocol, sock=sock)
            await server.serve_forever()
        asyncio.run(main())
    """
    script = tmp_path / "server.py"
    script.write_text(textwrap.dedent(code))
    with offloop.Cluster([sys.executable, str(script)], workers=1, listen=["127.0.0.1:0"], env={"PYTHONPATH": SITE}) as cluster:
        assert cluster.stats.ready == 1
