"""Exception classes against the shared table."""

from __future__ import annotations

import builtins
import concurrent.futures
import pickle
import queue

import offloop
import pytest
from offloop import _native

BASES = {
    "InvalidError": ValueError,
    "UnsupportedError": NotImplementedError,
    "Full": queue.Full,
    "Empty": queue.Empty,
    "ClosedError": RuntimeError,
    "TimeoutError": builtins.TimeoutError,
    "CancelledError": concurrent.futures.CancelledError,
    "DetachedError": BufferError,
    "TooLargeError": ValueError,
    "CorruptError": Exception,
    "VersionError": Exception,
    "PeerDiedError": ConnectionError,
    "WorkerLostError": concurrent.futures.BrokenExecutor,
    "TaskFailedError": RuntimeError,
    "DegradedError": concurrent.futures.BrokenExecutor,
    "OsError": OSError,
    "PanicError": RuntimeError,
    "InUseError": BufferError,
    "ForkedError": RuntimeError,
    "NotFoundError": LookupError,
    "UnserializableError": (TypeError, pickle.PicklingError),
    "StartFailedError": concurrent.futures.BrokenExecutor,
    "ExistsError": FileExistsError,
}


@pytest.mark.parametrize(("status", "name"), list(enumerate(BASES, 1)))
def test_each_status_has_its_class(status, name):
    cls = _native.error_class(-status)
    assert cls is getattr(offloop, name)
    assert issubclass(cls, offloop.OffloopError)
    bases = BASES[name]
    assert all(issubclass(cls, base) for base in (bases if isinstance(bases, tuple) else (bases,)))
    assert (cls.__module__, cls.__name__, cls.status) == ("offloop", name, -status)
    assert cls.kind
    assert cls.retry in {"never", "now", "later", "maybe"}
    error = pickle.loads(pickle.dumps(cls("a message")))
    assert type(error) is cls
    assert str(error) == "a message"


@pytest.mark.parametrize("status", [0, 1, -24, -1000, -(2**31)])
def test_a_status_of_a_newer_core_is_the_base_class(status):
    assert _native.error_class(status) is offloop.OffloopError


def test_values_are_in_the_context():
    with pytest.raises(offloop.NotFoundError) as e:
        offloop.default_pool().submit("sha999", b"")
    assert e.value.context["op"] == "sha999"
    assert "sha256" in e.value.context["known"]
    assert (e.value.kind, e.value.retry) == ("NotFound", "never")


def test_a_lost_worker_has_its_fields():
    error = offloop.WorkerLostError("x")
    assert (error.exit_code, error.signal, error.oom, error.poison) == (None, None, False, False)
