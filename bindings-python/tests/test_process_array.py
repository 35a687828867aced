"""ProcessPool.array: numpy arrays in memory that the host and its workers share."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import offloop
import pytest

PACKAGE = Path(offloop.__file__).parent.parent


@pytest.fixture(scope="module")
def processes() -> Iterator[offloop.ProcessPool]:
    with offloop.ProcessPool(max_workers=2) as pool:
        yield pool


def add(array: Any, n: float = 1) -> Any:
    array += n
    return array.sum()


def facts(array: Any) -> Any:
    return array.shape, array.strides, str(array.dtype), array.flags.writeable


@dataclass
class Model:
    name: str
    weights: list[Any]


def add_deep(model: Model, *, more: dict[str, Any]) -> int:
    arrays = [*model.weights, *more.values()]
    for array in arrays:
        array += 1
    return len(arrays)


kept: list[Any] = []


def keep(array: Any) -> None:
    kept.append(array)


def kept_sum() -> float:
    return float(sum(array.sum() for array in kept))


def let_go() -> None:
    kept.clear()


def add_and_end(array: Any) -> None:
    array += 1
    os._exit(1)


def give_back(array: Any) -> Any:
    return array


def eventually(done: Callable[[], bool]) -> None:
    import time

    until = time.monotonic() + 60
    while not done():
        assert time.monotonic() < until
        time.sleep(0.002)


@pytest.mark.parametrize("dtype", ["f8", "i1", ">u4", "c16", "M8[ns]", [("a", "i4"), ("b", "f8")]], ids=str)
@pytest.mark.parametrize("shape", [5, (3, 4), (2, 3, 4), (0, 3), ()], ids=str)
def test_an_array_is_one_of_numpy_and_all_zero(processes: offloop.ProcessPool, shape: Any, dtype: Any) -> None:
    array = processes.array(shape, dtype)
    assert type(array) is np.ndarray
    assert (array.tobytes(), array.shape, array.dtype) == (np.zeros(shape, dtype).tobytes(), np.zeros(shape).shape, np.dtype(dtype))
    assert array.flags.writeable
    assert processes.submit(facts, array).result(60) == (array.shape, array.strides, str(array.dtype), True)


def shared_memory() -> int:
    """Bytes of shared memory that this process has touched."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssShmem:")[1].split()[0]) << 10


def memory_of_files(name: str) -> int:
    """Bytes that the memfds of this process with that name have."""
    found = 0
    for fd in Path("/proc/self/fd").iterdir():
        # The one that lists them is gone by now.
        with contextlib.suppress(OSError):
            found += fd.stat().st_blocks * 512 if name in os.readlink(fd) else 0
    return found


def test_an_array_takes_memory_only_where_it_is_written() -> None:
    with offloop.ProcessPool(max_workers=1) as pool:
        before = shared_memory()
        array = pool.array(1 << 30, "u1")
        array[:: 1 << 28] = 1
        assert shared_memory() - before < 1 << 20
        assert pool.submit(add, array[-(1 << 28) :: 1 << 27]).result(60) == 3
        assert memory_of_files("offloop-shared") < 1 << 20
        # What was written is zero for the next one.
        del array
        array = pool.array(1 << 30, "u1")
        assert array[:: 1 << 27].tolist() == [0] * 8


@pytest.mark.parametrize("shape", [(2**40, 2**40), (2**40,), 2**35 + 1, (0, 2**70)], ids=str)
def test_an_array_that_no_pool_can_share_is_refused_with_its_shape(processes: offloop.ProcessPool, shape: Any) -> None:
    sizes = shape if isinstance(shape, tuple) else (shape,)
    with pytest.raises(offloop.TooLargeError) as refused:
        processes.array(shape, "u1")
    assert f"shape={sizes}, dtype=uint8, len={np.prod(sizes, dtype=object)}, max={2**35}" in str(refused.value)


def test_a_worker_writes_the_memory_that_the_host_reads(processes: offloop.ProcessPool) -> None:
    array = processes.array(1_000_000)
    array[:] = 2
    assert processes.submit(add, array, 3).result(60) == 5_000_000
    assert (array == 5).all()
    array[:] = 7
    assert processes.submit(add, array, 0).result(60) == 7_000_000


@pytest.mark.parametrize(
    "part",
    [
        np.s_[10:20],
        np.s_[:, 5],
        np.s_[::3, 1::2],
        np.s_[::-1, ::-2],
        np.s_[90:, 40:50],
        np.s_[3],
        np.s_[..., None],
        np.s_[5, 5, None],
    ],
    ids=str,
)
def test_views_and_slices_are_sent_by_reference(processes: offloop.ProcessPool, part: Any) -> None:
    array = processes.array((100, 50), "i8")
    array[:] = np.arange(5000).reshape(100, 50)
    want = array.copy()
    want[part] += 1
    view = array[part]
    assert processes.submit(add, view).result(60) == view.sum() == want[part].sum()
    assert (array == want).all()
    assert processes.submit(add, array.T).result(60) == want.sum() + 5000
    assert (array == want + 1).all()


def test_what_may_not_be_written_may_not_be_written_there_either(processes: offloop.ProcessPool) -> None:
    array = processes.array((10, 10))
    for view in (array[2:], array[:, ::3]):
        view.flags.writeable = False
        assert processes.submit(facts, view).result(60)[3] is False
        with pytest.raises(ValueError, match="read-only"):
            processes.submit(add, view).result(60)
    assert not array.any()


def test_arrays_are_found_at_any_depth_and_next_to_others(processes: offloop.ProcessPool) -> None:
    one, two, own = processes.array(100), processes.array((10, 10)), np.zeros(5000)
    model = Model("m", [one, own, two[:, 3]])
    assert processes.submit(add_deep, model, more={"again": one[::2], "own": own}).result(60) == 5
    assert (one[::2] == 2).all()
    assert (one[1::2] == 1).all()
    assert (two.sum(), two[:, 3].sum()) == (10, 10)
    assert not own.any()


def test_arrays_go_with_functions_that_travel_by_value(processes: offloop.ProcessPool) -> None:
    pytest.importorskip("cloudpickle")
    array = processes.array((10, 10))
    assert processes.submit(lambda a, f: f(a), array[::2, ::5], lambda a: a.fill(3)).result(60) is None
    assert array.sum() == 3 * 10


def test_every_call_of_a_map_has_the_same_memory(processes: offloop.ProcessPool) -> None:
    array = processes.array((64, 1000))
    assert list(processes.map(add, array, range(64))) == [1000 * i for i in range(64)]
    assert (array == np.arange(64)[:, None]).all()


def test_a_result_is_a_copy(processes: offloop.ProcessPool) -> None:
    array = processes.array(10_000)
    back = processes.submit(give_back, array).result(60)
    back += 1
    assert not array.any()


def test_for_another_pool_it_is_an_array_like_others(processes: offloop.ProcessPool) -> None:
    array = processes.array((100, 100))
    with offloop.ProcessPool(max_workers=1) as other:
        other.array(1)
        assert other.submit(add, array).result(60) == 10_000
        assert other.submit(add, array[:, ::2]).result(60) == 5_000
    assert not array.any()


def test_a_lost_worker_loses_nothing_of_it() -> None:
    with offloop.ProcessPool(max_workers=1) as pool:
        array = pool.array(100_000)
        with pytest.raises(offloop.WorkerLostError):
            pool.submit(add_and_end, array).result(60)
        assert (array == 1).all()
        assert pool.submit(add, array).result(60) == 200_000
        # A run after a loss finds what the lost one wrote.
        assert isinstance(pool.options(retries=1).submit(add_and_end, array).exception(60), offloop.WorkerLostError)
        assert (array == 4).all()


def test_it_lives_as_long_as_somebody_has_it_and_no_longer() -> None:
    with offloop.ProcessPool(max_workers=1) as pool:

        def place(array: Any) -> int:
            return int(array.__array_interface__["data"][0])

        first = pool.array(1_000_000)
        where, view = place(first), first[5:]
        del first
        other = pool.array(1_000_000)
        assert place(other) != where
        view[:] = 1
        future = pool.submit(keep, view)
        del view
        gc.collect()
        assert future.result(60) is None
        others = [pool.array(1_000_000) for _ in range(3)]
        assert where not in map(place, others)
        others[0][:] = 9
        assert pool.submit(kept_sum).result(60) == 999_995
        assert pool.submit(let_go).result(60) is None
        eventually(lambda: place(pool.array(1_000_000)) == where)
        again = pool.array(1_000_000)
        assert place(again) == where
        assert not again.any()


def test_what_a_lost_worker_kept_is_free() -> None:
    with offloop.ProcessPool(max_workers=1) as pool:
        array = pool.array(1_000_000)
        where = array.__array_interface__["data"][0]
        pool.submit(keep, array).result(60)
        del array
        assert pool.array(1_000_000).__array_interface__["data"][0] != where
        pool.submit(os._exit, 0).exception(60)
        eventually(lambda: pool.array(1_000_000).__array_interface__["data"][0] == where)


def test_a_worker_that_keeps_too_many_is_told_and_gets_more_when_it_has_let_go() -> None:
    with offloop.ProcessPool(max_workers=1) as pool:
        array = pool.array(10)
        futures = [pool.submit(keep, array) for _ in range(200)]
        errors = [future.exception(60) for future in futures]
        assert [type(e) for e in errors[:127]] == [type(None)] * 127
        assert all(isinstance(e, offloop.Full) for e in errors[128:])
        assert pool.submit(let_go).result(60) is None
        assert pool.submit(add, array).result(60) == 10


def test_it_outlives_its_pool() -> None:
    with offloop.ProcessPool(max_workers=1) as pool:
        array = pool.array(1000)
        pool.submit(add, array).result(60)
    assert array.sum() == 1000
    array[:] = 3
    assert array.sum() == 3000
    with pytest.raises(offloop.ClosedError):
        pool.array(1)


@pytest.mark.parametrize(
    ("shape", "dtype", "named"),
    [((2, -1), "f8", r"option=shape, value=\(2, -1\)"), (3, object, "option=dtype"), (3, [("a", "O")], "option=dtype")],
    ids=str,
)
def test_what_cannot_be_shared_is_refused(processes: offloop.ProcessPool, shape: Any, dtype: Any, named: str) -> None:
    with pytest.raises(offloop.InvalidError, match=named):
        processes.array(shape, dtype)
    with pytest.raises(TypeError):
        processes.array(1.5)  # type: ignore[arg-type]
    with pytest.raises(offloop.TooLargeError, match="len="):
        processes.array(1 << 50)


def test_workers_of_another_program_have_none() -> None:
    with offloop.ProcessPool(1, command=["/bin/true"]) as pool, pytest.raises(offloop.InvalidError, match="another program"):
        pool.array(3)


def test_without_numpy_it_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('no numpy')")
    code = "import offloop\nwith offloop.ProcessPool(1) as pool:\n    try: pool.array(3)\n    except offloop.NotFoundError as e: print(e)\n"
    env = {"PYTHONPATH": f"{tmp_path}:{PACKAGE}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=env)
    assert "pip install numpy" in done.stdout, done.stderr
