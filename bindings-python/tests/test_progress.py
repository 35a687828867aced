"""`progress=True` of `map` and `amap`."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Iterator
from typing import Any

import offloop
import pytest


def inc(n: int) -> int:
    return n + 1


def fail_at_5(n: int) -> int:
    if n == 5:
        raise LookupError("five")
    return n


@pytest.fixture(params=["ThreadPool", "ProcessPool"])
def pool(request: pytest.FixtureRequest) -> Iterator[Any]:
    with getattr(offloop, request.param)(max_workers=1) as pool:
        yield pool


@pytest.fixture(params=["tqdm", "rich"])
def bar(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The one that is installed."""
    found = importlib.util.find_spec
    other = {"tqdm": "rich", "rich": "tqdm"}[request.param]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == other else found(name))
    pytest.importorskip(request.param)
    return str(request.param)


def shown(capfd: pytest.CaptureFixture[str], bar: str) -> str:
    out, err = capfd.readouterr()
    assert (out == "") == (bar == "tqdm")
    return err if bar == "tqdm" else out


@pytest.mark.parametrize("options", [{}, {"ordered": False}, {"chunksize": 7}, {"chunksize": 7, "ordered": False}], ids=str)
def test_a_bar_counts_results(pool: Any, bar: str, options: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    results = pool.map(inc, range(100), progress=True, **options)
    assert shown(capfd, "tqdm") == "", "nothing before the first step"
    assert sorted(results) == list(range(1, 101))
    assert "100/100" in shown(capfd, bar)


def test_a_bar_of_an_endless_source_has_no_end(pool: Any, bar: str, capfd: pytest.CaptureFixture[str]) -> None:
    results = pool.map(inc, iter(range(30)), progress=True)
    assert len(list(results)) == 30
    text = shown(capfd, bar)
    assert "30" in text
    assert "30/30" not in text


def test_an_error_ends_the_bar(pool: Any, bar: str, capfd: pytest.CaptureFixture[str]) -> None:
    results = pool.map(fail_at_5, range(10), progress=True)
    with pytest.raises(LookupError, match="five"):
        list(results)
    assert "5/10" in shown(capfd, bar)
    with pytest.raises(StopIteration):
        next(results)


def test_a_bar_counts_asynchronous_results(pool: Any, bar: str, capfd: pytest.CaptureFixture[str]) -> None:
    async def items() -> AsyncIterator[int]:
        for i in range(20):
            yield i

    async def main() -> None:
        assert [i async for i in pool.amap(inc, range(50), progress=True)] == list(range(1, 51))
        assert "50/50" in shown(capfd, bar)
        assert sorted([i async for i in pool.amap(inc, items(), ordered=False, progress=True)]) == list(range(1, 21))
        assert "20" in shown(capfd, bar)

    asyncio.run(main())


def test_closing_ends_the_bar_and_the_calls(pool: Any, bar: str, capfd: pytest.CaptureFixture[str]) -> None:
    results = pool.map(inc, range(100_000), progress=True)
    assert next(results) == 1
    results.close()
    shown(capfd, bar)
    assert len(list(results)) < 5000, "what was in flight at most"
    assert pool.submit(inc, 1).result(60) == 2
    assert pool.stats.submitted < 100_000


def test_a_bar_that_is_dropped_before_its_first_step_leaves_the_tasks_to_the_pool(bar: str) -> None:
    done: list[int] = []
    with offloop.ThreadPool(max_workers=1) as pool:
        pool.map(done.append, range(5000), progress=True)
    assert done == list(range(5000))


def test_without_tqdm_and_rich_it_says_what_is_missing(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for call in (pool.map, pool.amap):
        with pytest.raises(offloop.NotFoundError, match="pip install tqdm"):
            call(inc, range(3), progress=True)
    with pytest.raises(offloop.NotFoundError, match="pip install tqdm"):
        pool.map(inc, range(3), chunksize=2, progress=True)
    assert list(pool.map(inc, range(3))) == [1, 2, 3]


def test_no_bar_is_loaded_that_nobody_asked_for(script: Any) -> None:
    code = "import offloop, sys\nwith offloop.ThreadPool() as p: list(p.map(abs, range(9)))\nprint(*{'tqdm', 'rich', 'trio', 'numpy'} & {*sys.modules})"
    assert script(code).stdout.strip() == ""
