"""ProcessPool(preload=…): workers that are forks of one process, which has imported what they need."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import offloop
import pytest

PACKAGE = Path(offloop.__file__).parent.parent


@pytest.fixture(scope="module")
def processes() -> Iterator[offloop.ProcessPool]:
    with offloop.ProcessPool(max_workers=2, preload=["wave", "numpy.random"]) as pool:
        yield pool


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Writes a module that workers can import."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


# ---- what workers run ----


def family(seconds: float = 0.02) -> tuple[int, int]:
    time.sleep(seconds)
    return os.getpid(), os.getppid()


def has_module(name: str) -> bool:
    return name in sys.modules


def end(code: int) -> None:
    os._exit(code)


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def draw() -> tuple[float, float]:
    time.sleep(0.02)
    return random.random(), float(np.random.random())


def product(n: int) -> float:
    a = np.ones((n, n))
    return float((a @ a)[0, 0])


_started_in = 0


def begin() -> None:
    global _started_in
    _started_in = os.getpid()


def started_here() -> bool:
    return _started_in == os.getpid()


def surroundings() -> tuple[str | None, int, bool, bool]:
    leads = os.getpgid(0) == os.getpid()
    return os.environ.get("OFFLOOP_TEST_HERE"), os.getpriority(os.PRIO_PROCESS, 0), leads, "OFFLOOP_ZYGOTE" in os.environ


def nested() -> int:
    with offloop.ProcessPool(max_workers=1) as pool:
        return pool.submit(os.getppid).result(60)


# ---- and who looks at them ----


def parent_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("PPid:")[1].split()[0])


def is_alive(pid: int) -> bool:
    """Not a zombie that the system has not collected yet either."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def eventually(done: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not done():
        assert time.monotonic() < until
        time.sleep(0.002)


def families(pool: offloop.ProcessPool, workers: int) -> set[tuple[int, int]]:
    """Pid and parent of each worker, when all are there."""
    seen: set[tuple[int, int]] = set()

    def all_seen() -> bool:
        seen.update(f.result(60) for f in [pool.submit(family) for _ in range(4)])
        return len(seen) >= workers

    eventually(all_seen)
    return seen


def test_workers_are_forks_of_one_process_that_has_the_modules(processes: offloop.ProcessPool) -> None:
    parents = {parent for _, parent in families(processes, 2)}
    assert len(parents) == 1
    (zygote,) = parents
    assert parent_of(zygote) == os.getpid()
    assert processes.submit(has_module, "wave").result(60)


def test_a_library_that_ends_its_threads_before_a_fork_works_in_workers(processes: offloop.ProcessPool) -> None:
    # OpenBLAS starts threads when numpy is imported, and new ones in a worker that needs them.
    assert list(processes.map(product, [300] * 8)) == [300.0] * 8
    assert parent_of(processes.submit(os.getppid).result(60)) == os.getpid()


def test_each_worker_draws_other_random_numbers(processes: offloop.ProcessPool) -> None:
    families(processes, 2)
    drawn = [f.result(60) for f in [processes.submit(draw) for _ in range(20)]]
    assert len({a for a, _ in drawn}) == 20
    assert len({b for _, b in drawn}) == 20


def test_a_worker_has_environment_niceness_and_initializer_of_its_own() -> None:
    with offloop.ProcessPool(
        max_workers=1, preload="wave", env={"OFFLOOP_TEST_HERE": "yes"}, nice=1, initializer=begin, context={"model": 3}
    ) as pool:
        nice = min(os.getpriority(os.PRIO_PROCESS, 0) + 1, 19)
        assert pool.submit(surroundings).result(60) == ("yes", nice, True, False)
        assert pool.submit(started_here).result(60)


def test_how_a_worker_ended_is_known_and_the_next_one_is_a_fork_too(processes: offloop.ProcessPool) -> None:
    zygote = processes.submit(os.getppid).result(60)
    with pytest.raises(offloop.WorkerLostError) as lost:
        processes.submit(end, 7).result(60)
    assert lost.value.exit_code == 7
    with pytest.raises(offloop.WorkerLostError) as lost:
        processes.submit(kill_self).result(60)
    assert lost.value.signal == signal.SIGKILL
    assert {parent for _, parent in families(processes, 2)} == {zygote}


def test_replaced_workers_are_forks() -> None:
    with offloop.ProcessPool(max_workers=1, max_tasks_per_child=2, preload=["wave"]) as pool:
        seen = [pool.submit(family, 0).result(60) for _ in range(8)]
        assert len({pid for pid, _ in seen}) >= 4
        assert len({parent for _, parent in seen}) == 1


def test_a_pool_outlives_the_process_that_its_workers_are_forked_from() -> None:
    with offloop.ProcessPool(max_workers=1, preload=["wave"]) as pool:
        worker, zygote = pool.submit(family, 0).result(60)
        os.kill(zygote, signal.SIGKILL)
        eventually(lambda: not is_alive(zygote))
        assert pool.submit(os.getpid).result(60) == worker
        with pytest.raises(offloop.WorkerLostError):
            pool.submit(end, 7).result(60)
        other, second = pool.submit(family, 0).result(60)
        assert (other != worker, second != zygote, parent_of(second)) == (True, True, os.getpid())
        assert pool.submit(has_module, "wave").result(60)


def test_shutdown_and_terminate_leave_no_process() -> None:
    for leave in (offloop.ProcessPool.shutdown, offloop.ProcessPool.terminate):
        pool = offloop.ProcessPool(max_workers=2, preload=["wave"])
        pids = {pid for pair in families(pool, 2) for pid in pair}
        assert len(pids) == 3
        leave(pool)
        if leave is offloop.ProcessPool.terminate:
            pool.shutdown()
        assert [pid for pid in pids if is_alive(pid)] == []


@pytest.mark.parametrize("how", ["shutdown", "terminate", "cancel_futures"])
@pytest.mark.parametrize("busy", [False, True])
def test_a_pool_ends_although_the_process_that_its_workers_are_forked_from_stands_still(how: str, busy: bool) -> None:
    pool = offloop.ProcessPool(max_workers=1, preload=["wave"], cancel_grace=0.05)
    worker, zygote = pool.submit(family, 0).result(60)
    os.kill(zygote, signal.SIGSTOP)
    running = pool.submit(time.sleep, 0.2)
    futures = [pool.submit(family, 0) for _ in range(3)] if busy else []
    if how == "cancel_futures":
        # What it ran is lost, and what it was to run next would need another worker.
        eventually(running.running)
        os.kill(worker, signal.SIGKILL)
    if how == "terminate":
        pool.terminate()
    pool.shutdown(cancel_futures=how == "cancel_futures")
    assert [pid for pid in (worker, zygote) if is_alive(pid)] == []
    assert all(future.cancelled() == (how != "shutdown") for future in futures)


def children() -> set[int]:
    tasks = Path(f"/proc/{os.getpid()}/task").iterdir()
    return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}


def test_a_pool_that_is_not_used_has_one_process_until_its_end() -> None:
    before = children()
    with offloop.ProcessPool(max_workers=1, preload=["wave"]):
        eventually(lambda: len(children() - before) == 1)
        (zygote,) = children() - before
    assert not is_alive(zygote)


def test_a_module_that_cannot_be_imported_fails_the_tasks_with_its_traceback(modules: Callable[[str, str], str]) -> None:
    name = modules("offloop_test_bad", "def load():\n    raise LookupError('no weights')\nload()\n")
    with offloop.ProcessPool(max_workers=2, preload=[name]) as pool:
        with pytest.raises(offloop.StartFailedError, match="no weights") as failed:
            pool.submit(os.getpid).result(60)
        assert "offloop_test_bad.py" in str(failed.value)
        assert "in load" in str(failed.value)
    with (
        offloop.ProcessPool(max_workers=1, preload=["offloop_test_not_there"]) as pool,
        pytest.raises(offloop.StartFailedError, match="No module named 'offloop_test_not_there'"),
    ):
        pool.submit(os.getpid).result(60)


def test_a_module_that_ends_the_process_fails_the_tasks(modules: Callable[[str, str], str]) -> None:
    for text, told in [("import os\nos._exit(3)\n", "exit_code=3"), ("raise SystemExit('enough')\n", "SystemExit: enough")]:
        name = modules(f"offloop_test_ends_{len(told)}", text)
        with (
            offloop.ProcessPool(max_workers=1, preload=[name]) as pool,
            pytest.raises(offloop.StartFailedError, match=told),
        ):
            pool.submit(os.getpid).result(60)


def test_with_a_module_that_starts_a_thread_workers_are_started_by_exec(modules: Callable[[str, str], str]) -> None:
    name = modules(
        "offloop_test_thread",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n",
    )
    with offloop.ProcessPool(max_workers=2, preload=[name]) as pool:
        assert {parent for _, parent in families(pool, 2)} == {os.getpid()}
        assert pool.submit(has_module, name).result(60)


def test_a_worker_can_have_a_pool(processes: offloop.ProcessPool) -> None:
    worker, _ = processes.submit(family).result(60)
    assert processes.submit(nested).result(120) in {pid for pid, _ in families(processes, 2)} | {worker}


def test_what_another_program_runs_has_no_modules_of_this_one() -> None:
    with pytest.raises(offloop.InvalidError, match="no modules"):
        offloop.ProcessPool(command=["worker"], preload=["wave"])


# ---- programs ----


def program(args: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *args]
    environ = {**os.environ, "PYTHONPATH": str(PACKAGE), **env}
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120, env=environ)


def test_the_main_module_can_be_imported_once_for_all_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "script.py"
    script.write_text("""
import offloop, os
with open("loads", "a") as file:
    file.write(f"{__name__}\\n")

def there():
    return __name__

if __name__ == "__main__":
    with offloop.ProcessPool(1, max_tasks_per_child=1, preload=["__main__"]) as pool:
        print({pool.submit(there).result(60) for _ in range(4)})
""")
    monkeypatch.chdir(tmp_path)
    assert program([str(script)]).stdout == "{'__mp_main__'}\n"
    assert (tmp_path / "loads").read_text().split() == ["__main__", "__mp_main__"]


def test_what_a_module_prints_is_printed_once(tmp_path: Path) -> None:
    (tmp_path / "offloop_test_says.py").write_text("print('hello', end='')\n")
    code = """
import offloop, os
with offloop.ProcessPool(1, max_tasks_per_child=1, preload=["offloop_test_says"]) as pool:
    for _ in range(3):
        pool.submit(os.getpid).result(60)
"""
    assert program(["-c", code], PYTHONPATH=f"{PACKAGE}:{tmp_path}", PYTHONUNBUFFERED="").stdout == "hello"


def test_a_killed_program_leaves_no_process() -> None:
    code = """
import offloop, os, sys
pool = offloop.ProcessPool(1, preload=["wave"])
print(pool.submit(os.getppid).result(60), pool.submit(os.getpid).result(60), flush=True)
sys.stdin.read()
"""
    environ = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ) as host:
        assert host.stdout is not None
        pids = [int(pid) for pid in host.stdout.readline().split()]
        assert all(map(is_alive, pids))
        host.kill()
    eventually(lambda: not any(map(is_alive, pids)))


def test_the_interpreters_exit_ends_a_pool_that_is_left_open() -> None:
    code = """
import offloop, os
pool = offloop.ProcessPool(1, preload=["wave"])
print(pool.submit(os.getppid).result(60), pool.submit(os.getpid).result(60))
"""
    pids = [int(pid) for pid in program(["-c", code]).stdout.split()]
    assert not any(map(is_alive, pids))
