"""TransferBuffer and host memory."""

from __future__ import annotations

import array
import copy
import multiprocessing
import os
import pickle
import sys
import threading
import time

import offloop
import pytest
from offloop import TransferBuffer

np = pytest.importorskip("numpy")


def test_views_share_the_bytes_and_are_writable():
    b = TransferBuffer(16)
    view = memoryview(b)
    assert (view.format, view.shape, view.readonly, view.nbytes) == ("B", (16,), False, 16)
    array_ = np.frombuffer(b, dtype="<u4")
    array_[1] = 0x01020304
    assert bytes(view[4:8]) == b"\4\3\2\1"
    assert array_.ctypes.data == np.asarray(b).ctypes.data
    assert (len(b), b.nbytes, b.fd, b.detached) == (16, 16, None, False)
    assert repr(b) == "TransferBuffer(16 bytes)"


def test_transfer_detaches_and_the_token_is_one_shot():
    b = TransferBuffer.from_bytes(b"hello")
    token = b.transfer()
    assert isinstance(token, str)
    assert (b.detached, b.nbytes, len(b)) == (True, 0, 0)
    taken = []
    thread = threading.Thread(target=lambda: taken.append(TransferBuffer.receive(token)))
    thread.start()
    thread.join()
    assert bytes(taken[0]) == b"hello"
    with pytest.raises(offloop.DetachedError):
        TransferBuffer.receive(token)
    with pytest.raises(offloop.DetachedError):
        b.transfer()


def test_a_live_export_forbids_the_transfer():
    b = TransferBuffer.from_bytes(b"hello")
    view = memoryview(b)
    part = np.frombuffer(b, "u1")[1:3]
    for move in (b.transfer, lambda: offloop.ops.sha256(b)):
        with pytest.raises(offloop.InUseError, match="views=2") as e:
            move()
        assert isinstance(e.value, BufferError)
    view.release()
    del part
    assert b.transfer()


def test_a_detached_buffer_gives_no_view():
    b = TransferBuffer(4)
    offloop.revoke_token(b.transfer())
    for view in (memoryview, bytes, np.asarray, np.array, lambda x: np.frombuffer(x, "u1"), offloop.ops.sha256):
        with pytest.raises(offloop.DetachedError):
            view(b)


def test_revoked_tokens_free_the_bytes():
    token = TransferBuffer(4).transfer()
    offloop.revoke_token(token)
    for use in (offloop.revoke_token, TransferBuffer.receive):
        with pytest.raises(offloop.DetachedError):
            use(token)


@pytest.mark.parametrize("token", ["", "olt-1-2", "x" * 1000, "olt-0123456789abcdef-1-" + "0" * 32])
def test_made_up_tokens_are_invalid(token):
    with pytest.raises(offloop.InvalidError):
        TransferBuffer.receive(token)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: TransferBuffer(-1), offloop.InvalidError),
        (lambda: TransferBuffer(1 << 62), offloop.TooLargeError),
        (lambda: TransferBuffer(10**40), offloop.TooLargeError),
        (lambda: TransferBuffer(1 << 49, shared=True), offloop.OsError),
        (lambda: TransferBuffer("4"), TypeError),
        (lambda: TransferBuffer(4.0), TypeError),
        (lambda: TransferBuffer.from_bytes("text"), offloop.InvalidError),
        (lambda: TransferBuffer.from_bytes(7), offloop.InvalidError),
        (lambda: TransferBuffer.attach(-1), offloop.InvalidError),
        (lambda: TransferBuffer.attach(0), offloop.InvalidError),
        (lambda: TransferBuffer.attach(10_000), offloop.OffloopError),
    ],
)
def test_bad_sizes_and_sources(make, kind):
    with pytest.raises(kind):
        make()


def test_os_errors_have_errno_and_syscall():
    with pytest.raises(OSError, match="ENOMEM|allocate|os error") as e:
        TransferBuffer(1 << 49, shared=True)
    assert e.value.errno
    assert e.value.syscall
    assert isinstance(e.value, offloop.OffloopError)


def test_it_is_not_pickled_or_copied():
    for refuse in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(offloop.UnserializableError, match="token"):
            refuse(TransferBuffer(1))


def child_writes(fd, done):
    view = memoryview(TransferBuffer.attach(fd))
    view[0:5] = b"child"
    done.set()


def test_shared_memory_is_seen_by_another_process():
    b = TransferBuffer(100_000, shared=True)
    assert b.fd > 2
    other = TransferBuffer.attach(b.fd)
    memoryview(other)[99_999] = 7
    assert memoryview(b)[99_999] == 7
    context = multiprocessing.get_context("fork")
    done = context.Event()
    child = context.Process(target=child_writes, args=(b.fd, done))
    child.start()
    child.join()
    assert done.is_set()
    assert bytes(memoryview(b)[:5]) == b"child"


def test_a_forked_child_refuses_the_parents_shared_buffer():
    b = TransferBuffer(4096, shared=True)
    pid = os.fork()
    if pid == 0:
        try:
            memoryview(b)
        except offloop.ForkedError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    memoryview(b)[0] = 1


def test_a_buffer_moves_into_a_task(pool):
    b = TransferBuffer.from_bytes(b"x" * 100_000)
    future = pool.submit("noop", b)
    assert b.detached
    assert future.result() == b"x" * 100_000


@pytest.mark.parametrize(
    "data",
    [
        bytearray(b"abc" * 1000),
        memoryview(b"abc" * 1000),
        memoryview(bytearray(b"abcd" * 1500))[::2],
        array.array("d", [1.5, 2.5]),
        np.arange(1000, dtype="f4").reshape(10, 100),
        np.asfortranarray(np.arange(12).reshape(3, 4)),
        np.arange(100)[::3],
        np.arange(100)[::-7],
        np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)[:, ::-1, 1:3, ::2],
        np.arange(2 * 3 * 4 * 5, dtype="i2").reshape(2, 3, 4, 5).transpose(2, 0, 3, 1),
        np.arange(24).reshape(2, 3, 4)[:, :, 1:3],
        np.arange(24).reshape(2, 3, 4)[:, 1:2, :],
        np.broadcast_to(np.arange(3), (4, 3)),
        np.broadcast_to(np.arange(3)[:, None], (3, 4)),
        (np.arange(60) * 1j).reshape(6, 10).T,
        np.array([(1, 2.5)] * 9, dtype="i4,f8")[::2],
        np.arange(1 << 19).reshape(1 << 9, 1 << 10).T,
        np.zeros((3, 5 << 20), dtype="u1")[:, : 3 << 20],
        np.zeros((4, 0, 3))[:, :, ::2],
        b"",
        bytearray(),
    ],
    ids=lambda d: type(d).__name__,
)
def test_any_buffer_is_an_input_in_c_order(pool, data):
    want = memoryview(data).tobytes()
    assert pool.submit("noop", data).result() == want
    assert offloop.ops.noop(data) == want
    assert bytes(TransferBuffer.from_bytes(data)) == want


def test_writable_memory_is_copied_before_the_call_returns(pool):
    data = bytearray(b"a" * 300_000)
    want = offloop.ops.sha256(bytes(data))
    futures = []
    for _ in range(20):
        futures.append(pool.submit("sha256", data))
        data[:] = b"b" * 300_000
        data.clear()
        data.extend(b"a" * 300_000)
    assert {f.result() for f in futures} == {want}


def test_long_bytes_live_as_long_as_the_task(pool):
    futures = [pool.submit("noop", bytes([n]) * 200_000, sleep_ms=5) for n in range(20)]
    assert [f.result() for f in futures] == [bytes([n]) * 200_000 for n in range(20)]


def test_results_above_the_copy_slice_are_whole():
    data = os.urandom(3 << 20)
    assert offloop.ops.noop(data) == data


def test_memory_behind_pointers_is_an_input():
    ndarray = pytest.importorskip("_testbuffer")
    array_ = ndarray.ndarray(list(range(12)), shape=[3, 4], format="i", flags=ndarray.ND_PIL)
    assert array_.suboffsets
    assert offloop.ops.noop(array_) == np.arange(12, dtype="i4").tobytes()
    assert bytes(TransferBuffer.from_bytes(array_)) == np.arange(12, dtype="i4").tobytes()


LONG = 256 << 20


@pytest.mark.parametrize(
    "make",
    [
        lambda: bytes(LONG),
        lambda: bytearray(LONG),
        lambda: np.zeros((LONG >> 12, 1 << 13), "u1")[:, : 1 << 12],
    ],
    ids=["bytes", "bytearray", "strided"],
)
@pytest.mark.parametrize(
    "use",
    [TransferBuffer.from_bytes, lambda data: offloop.ops.noop(data, sleep_ms=0)],
    ids=["from_bytes", "input"],
)
def test_other_threads_run_during_a_long_copy(make, use):
    data = make()
    seen = []

    def during():
        door, returned = threading.Lock(), []
        door.acquire()
        thread = threading.Thread(target=lambda: (door.acquire(), seen.append(not returned)))
        thread.start()
        time.sleep(0.01)  # it waits at the door
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1000)  # no thread is made to give the interpreter away
        try:
            door.release()
            use(data)
            returned.append(True)
        finally:
            sys.setswitchinterval(interval)
        thread.join()
        return seen.pop()

    # A busy machine may wake the thread too late.
    assert any(during() for _ in range(5))
