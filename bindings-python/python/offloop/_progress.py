"""Bars of tqdm or rich, for `map` and `amap` with `progress=True`."""

from __future__ import annotations

import contextlib
import importlib.util
from typing import TYPE_CHECKING, Any

from ._native import NotFoundError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator


def bar_of(iterables: tuple[Any, ...]) -> Bar:
    """A bar for results of these iterables, which end with the shortest. It shows at the first step.

    tqdm is taken where both are installed: it writes to stderr, and in a notebook into its cell.
    """
    lengths = [len(i) for i in iterables if hasattr(i, "__len__")]
    total = min(lengths, default=None)
    for name, start in (("tqdm", _tqdm), ("rich", _rich)):
        if importlib.util.find_spec(name) is not None:
            return Bar(start, total)
    raise NotFoundError(
        "not found: progress shows a bar of tqdm or rich, of which neither is installed: pip install tqdm (option=progress, value=True)"
    )


# Shows one more, and ends the bar.
Ends = tuple["Callable[[], object]", "Callable[[], object]"]


def _tqdm(total: int | None) -> Ends:
    from tqdm.auto import tqdm

    bar = tqdm(total=total)
    return bar.update, bar.close


def _rich(total: int | None) -> Ends:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    bar = Progress(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    task = bar.add_task("", total=total)
    bar.start()
    return lambda: bar.advance(task), bar.stop


class Bar:
    def __init__(self, start: Callable[[int | None], Ends], total: int | None) -> None:
        self._start = start
        self._total = total
        self._ends: Ends | None = None

    def show(self) -> None:
        if self._ends is None:
            self._ends = self._start(self._total)

    def advance(self) -> None:
        self.show()
        if self._ends is not None:
            self._ends[0]()

    def close(self) -> None:
        if self._ends is not None:
            ends, self._ends = self._ends, None
            ends[1]()


async def shown(results: AsyncGenerator[Any], bar: Bar) -> AsyncGenerator[Any]:
    """The results of `amap`, counted by a bar."""
    async with contextlib.aclosing(results):
        try:
            bar.show()
            async for result in results:
                bar.advance()
                yield result
        finally:
            bar.close()


class Shown:
    """The results of `map`, counted by a bar."""

    def __init__(self, results: Any, bar: Bar) -> None:
        self._results = results
        self._bar = bar

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self._bar.show()
        # No name refers to the result: the consumer alone keeps it.
        result = []
        try:
            result.append(next(self._results))
        except BaseException:
            self._bar.close()
            raise
        self._bar.advance()
        return result.pop()

    def close(self) -> None:
        """Cancels what was not started."""
        self._bar.close()
        self._results.close()

    def __del__(self) -> None:
        self._bar.close()
