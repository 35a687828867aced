"""Pickles of calls and results between a ProcessPool and its workers; native code calls these.

The functions of `__main__` are not importable in a worker. A script's are found by importing the script again, under the name
`__mp_main__` as multiprocessing does, when a pickle first names one, and so are those of a `__main__.py`. Those of `python -c`, stdin
and notebooks have no file: they travel by value, which needs cloudpickle.
"""

from __future__ import annotations

import contextlib
import contextvars
import copyreg
import functools
import io
import os
import pickle
import sys
import threading
import traceback
import weakref
from collections import ChainMap
from collections.abc import Coroutine
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from ._native import InvalidError, TaskFailedError, UnserializableError, _SharedMemory

if TYPE_CHECKING:
    from collections.abc import Callable

# How a worker gets the functions of its host's `__main__`: ("name", module), ("path", file); of a `__main__.py` ("package", module) or
# ("directory", path of a directory or an archive); or None.
Main = tuple[str, str] | None

# A worker's: what its pool said, until the first pickle needs it.
_main: Main = None
_authkey: bytes | None = None
_is_worker = False
_loading = False


def main_of_host() -> Main:
    """Where a worker finds what `__main__` of this process has."""
    if _is_worker:
        return _main
    module = sys.modules.get("__main__")
    name = getattr(getattr(module, "__spec__", None), "name", None)
    path = getattr(module, "__file__", None)
    if name == "__main__":
        # `python directory` and `python archive`, which has no such file.
        return None if path is None else ("directory", os.path.dirname(path))
    if name is not None:
        return ("package" if name.endswith(".__main__") else "name", name)
    if path is None or not os.path.isfile(path):
        return None
    return ("path", os.path.abspath(path))


def begin_worker(main: Main, authkey: bytes | None = None) -> None:
    global _main, _authkey, _is_worker
    _main, _authkey, _is_worker = main, authkey, True


def is_loading_main() -> bool:
    return _loading


def _names_main(data: bytes) -> bool:
    return b"_main__" in data


def load_main() -> None:
    """Makes `__main__` of the host known here, once."""
    global _loading
    if not _is_worker or _main is None or "__mp_main__" in sys.modules:
        return
    from multiprocessing import spawn

    kind, what = _main
    _loading = True
    try:
        if kind == "name":
            spawn._fixup_main_from_name(what)  # type: ignore[attr-defined]
        elif kind == "path":
            spawn._fixup_main_from_path(what)  # type: ignore[attr-defined]
        else:
            _run_main(kind, what)
    except SystemExit as e:
        text = "a worker imports the main module, which ended the program then: put that under `if __name__ == '__main__':`"
        raise InvalidError(f"invalid: {text}") from e
    finally:
        _loading = False


def _run_main(kind: str, what: str) -> None:
    """As multiprocessing does it for scripts; it leaves out each `__main__.py`, which as a rule has no guard, and no functions either."""
    import runpy

    given = (
        runpy.run_module(what, run_name="__mp_main__", alter_sys=True)
        if kind == "package"
        else runpy.run_path(what, run_name="__mp_main__")
    )
    module = ModuleType("__mp_main__")
    vars(module).update(given)
    # The names of a module are gone with it, and code of the old one runs.
    _replaced.append(sys.modules["__main__"])
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module


_replaced: list[ModuleType] = []


class _Unpickler(pickle.Unpickler):
    """Runs the host's `__main__` when a pickle has something of it, and not for a text that says so: a `__main__.py` may have no guard."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("__main__", "__mp_main__"):
            load_main()
        return super().find_class(module, name)


def _loads(data: bytes, **options: Any) -> Any:
    """Loads what a host pickled, with what it expects to be there."""
    global _authkey
    unguarded = _main is not None and _main[0] in ("package", "directory")
    if _names_main(data) and not unguarded:
        load_main()
    if _authkey is not None and b"multiprocessing" in data:
        from multiprocessing.process import current_process

        # Proxies of a manager open a connection as they are loaded.
        current_process().authkey, _authkey = _authkey, None
    if unguarded and _names_main(data):
        return _Unpickler(io.BytesIO(data), **options).load()
    return pickle.loads(data, **options)


def _by_name(value: Any, arena: object, **options: Any) -> bytes:
    if arena is None:
        return pickle.dumps(value, 5, **options)
    file = io.BytesIO()
    pickler = pickle.Pickler(file, 5, **options)
    table: Any = ChainMap(_shared_arrays(arena), copyreg.dispatch_table)
    pickler.dispatch_table = table
    pickler.dump(value)
    return file.getvalue()


def _by_value(value: Any, arena: object = None, **options: Any) -> bytes:
    pickler = _pickler_by_value()
    if arena is not None:
        pickler = type("Pickler", (pickler,), {"dispatch_table": ChainMap(_shared_arrays(arena), pickler.dispatch_table)})
    file = io.BytesIO()
    pickler(file, 5, **options).dump(value)
    return file.getvalue()


@functools.cache
def _pickler_by_value() -> Any:
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        # Of the class: an instance's own is not looked at.
        dispatch_table = ChainMap({io.TextIOWrapper: _reduce_file}, cloudpickle.Pickler.dispatch_table)

    return Pickler


def _reduce_file(file: io.TextIOWrapper) -> Any:
    """A stream of the process by its name, others not: cloudpickle would read the file, and send an `io.StringIO` of it."""
    for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
        if file is getattr(sys, name):
            return getattr, (sys, name)
    raise TypeError("cannot pickle '_io.TextIOWrapper' object")


def _shared_arrays(arena: object) -> dict[type, Any]:
    """How arrays are pickled whose elements lie apart in the arena: others are out-of-band buffers by themselves."""
    import numpy

    def reduce(array: Any) -> Any:
        if not (array.flags.c_contiguous or array.flags.f_contiguous) and not array.dtype.hasobject:
            owner: Any = array
            while owner is not None and not isinstance(owner, _SharedMemory):
                owner = owner.obj if isinstance(owner, memoryview) else getattr(owner, "base", None)
            if owner is not None and owner.arena is arena:
                whole = numpy.frombuffer(memoryview(owner), "u1")
                offset = array.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
                about = (array.dtype, array.shape, offset, array.strides, array.flags.writeable)
                return _part_of_array, (pickle.PickleBuffer(owner), *about)
        return array.__reduce_ex__(5)

    return {numpy.ndarray: reduce}


def _part_of_array(memory: Any, dtype: Any, shape: tuple[int, ...], offset: int, strides: tuple[int, ...], writeable: bool) -> Any:
    import numpy

    array = numpy.ndarray(shape, dtype, memory, offset, strides)
    array.flags.writeable = writeable
    return array


def _dumps(what: str, value: Any, arena: object = None, **options: Any) -> tuple[bytes, bool]:
    """A pickle that a worker can load: by reference where it can find what is named, else by value. The second says that it is the former."""
    why: Exception | None = None
    try:
        data = _by_name(value, arena, **options)
        if not _names_main(data) or main_of_host() is not None:
            return data, True
    except Exception as e:
        why = e
    if "buffer_callback" in options:
        options["buffer_callback"].__self__.clear()
    try:
        return _by_value(value, arena, **options), False
    except ImportError:
        if why is None:
            text = f"{what} needs __main__ of this process, which has no file that a worker could import: install cloudpickle"
        else:
            text = f"{what} cannot be pickled ({type(why).__name__}: {why}); functions without a name of their own need cloudpickle"
        raise UnserializableError(f"unserializable: {text}") from why
    except Exception as e:
        raise UnserializableError(f"unserializable: {what} cannot be pickled ({type(e).__name__}: {e})") from (why or e)


def _name(function: Any) -> str:
    return f"function {getattr(function, '__qualname__', type(function).__name__)}"


def dump_function(function: Callable[..., Any]) -> tuple[bytes, bool]:
    """The pickle, and whether it is but a name."""
    data, by_reference = _dumps(_name(function), function)
    named = isinstance(function, FunctionType) or isinstance(getattr(function, "__self__", None), ModuleType)
    return data, by_reference and named


def dump_call(args: tuple[Any, ...], kwargs: dict[str, Any] | None, arena: object) -> tuple[bytes, list[memoryview]]:
    """`arena`: what the pool's shared memory is known by, if it has some."""
    buffers: list[pickle.PickleBuffer] = []
    data, _ = _dumps("an argument", (args, kwargs or {}), arena, buffer_callback=buffers.append)
    return data, [buffer.raw() for buffer in buffers]


def dump_setup(what: str, value: Any) -> bytes:
    return _dumps(what, value)[0]


def load_function(data: bytes) -> Any:
    return _loads(data)


def load_call(data: bytes, buffers: list[memoryview]) -> Any:
    return _loads(data, buffers=buffers)


def dump_result(value: Any) -> tuple[bytes, list[memoryview]]:
    buffers: list[pickle.PickleBuffer] = []
    try:
        data = pickle.dumps(value, 5, buffer_callback=buffers.append)
    except Exception as e:
        # The classes of a function that came by value go back by value.
        if "cloudpickle" not in sys.modules:
            raise UnserializableError(f"unserializable: the result cannot be pickled (type={type(value).__name__}, error={e})") from e
        buffers.clear()
        try:
            data = _by_value(value, buffer_callback=buffers.append)
        except Exception as second:
            raise UnserializableError(
                f"unserializable: the result cannot be pickled (type={type(value).__name__}, error={second})"
            ) from second
    return data, [buffer.raw() for buffer in buffers]


def settled(returned: Any) -> Any:
    """What a function returned; a coroutine, which an `async def` returns, is run to its end."""
    return _run(returned) if isinstance(returned, Coroutine) else returned


# Of each thread: `runner`, once something asynchronous was run there.
_of_thread = threading.local()
_loops: weakref.WeakSet[Any] = weakref.WeakSet()


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """As `asyncio.run`, on a loop that the thread keeps: what a function leaves there (sessions, connections) is of use to the next one."""
    runner = getattr(_of_thread, "runner", None)
    if runner is None:
        import asyncio

        runner = asyncio.Runner()
        _loops.add(runner.get_loop())
        _of_thread.runner, _of_thread.process = runner, os.getpid()
    # A copy for each: the runner has one context for all otherwise, that of its first.
    return runner.run(_run_and_settle(coroutine), context=contextvars.copy_context())


async def _run_and_settle(coroutine: Coroutine[Any, Any, Any]) -> Any:
    import asyncio

    try:
        return await coroutine
    finally:
        # An asynchronous generator that it has dropped is closed by a task: one turn to start that, another for what it does.
        await asyncio.sleep(0)
        await asyncio.sleep(0)


def end_thread() -> None:
    """Cancels what is left on this thread's loop, and closes it."""
    runner = getattr(_of_thread, "runner", None)
    # A child by fork leaves the parent's tasks alone.
    if runner is not None and _of_thread.process == os.getpid():
        del _of_thread.runner
        runner.close()


def _after_fork_in_child() -> None:
    """A child has an epoll of its own: what it closed in the one that it shares with its parent would be gone there."""
    for loop in list(_loops):
        selector: Any = getattr(loop, "_selector", None)
        if hasattr(selector, "fileno"):
            import select

            with select.epoll() as own:
                os.dup2(own.fileno(), selector.fileno(), inheritable=False)


os.register_at_fork(after_in_child=_after_fork_in_child)


def give_all(values: Any, give: Callable[[Any], bool]) -> Any:
    """Gives what a stream's function yields, and returns what it returns. Its `finally` has run then, whoever ended it."""
    values = settled(values)
    if hasattr(values, "__aiter__"):
        return _run(_give_all_of_async(values, give))
    iterator = iter(values)
    try:
        while True:
            try:
                value = next(iterator)
            except StopIteration as end:
                return end.value
            if not give(value):
                return None
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


async def _give_all_of_async(values: Any, give: Callable[[Any], bool]) -> None:
    iterator = aiter(values)
    try:
        async for value in iterator:
            if not give(value):
                return
    finally:
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()


def dump_raised(error: BaseException) -> tuple[bytes, bytes]:
    """What is left of an exception that cannot be rebuilt, and its pickle."""
    stack = "".join(traceback.format_exception(error))
    try:
        text = str(error)
    except Exception:
        text = ""
    about = pickle.dumps((type(error).__name__, text, stack), 5)
    try:
        return about, pickle.dumps(error, 5)
    except Exception:
        pass
    if "cloudpickle" in sys.modules:
        try:
            return about, _by_value(error)
        except Exception:
            pass
    return about, b""


def load_result(data: bytes, buffers: list[memoryview]) -> Any:
    try:
        return pickle.loads(data, buffers=buffers)
    except MemoryError:
        raise
    except Exception as e:
        raise UnserializableError(f"unserializable: the result cannot be rebuilt here ({type(e).__name__}: {e})") from e


def rebuilt(about: bytes, data: bytes) -> BaseException:
    """The exception that a function raised, with the worker's traceback as its cause, as ProcessPoolExecutor has it."""
    from concurrent.futures.process import _RemoteTraceback

    name, text, stack = pickle.loads(about)
    error = None
    if data:
        with contextlib.suppress(Exception):
            error = pickle.loads(data)
    if not isinstance(error, BaseException):
        error = TaskFailedError(f"task failed: {name}: {text}" if text else f"task failed: {name}")
        error.name, error.message, error.stack, error.properties = name, text, stack, {}
    error.__cause__ = _RemoteTraceback(f'\n"""\n{stack}"""')  # type: ignore[arg-type]
    return error
