"""Rings within a process: what each call does, what it refuses, and views of the ring's own memory."""

from __future__ import annotations

import array
import gc
import os
import pickle
import random
import struct
import threading
import zlib
from collections import deque
from pathlib import Path

import numpy as np
import offloop
import pytest
from offloop import RingBuffer


@pytest.fixture
def ring():
    with RingBuffer.create("spsc", capacity=4096) as ring:
        yield ring


@pytest.fixture
def ends(ring):
    return ring.producer(), ring.consumer()


def fill(producer, record=b"x" * 1000):
    """Pushes until the ring is full; how many went in."""
    n = 0
    while producer.try_push(record):
        n += 1
    return n


# ---- what goes in comes out ----


def test_records_come_out_in_order(ends):
    producer, consumer = ends
    assert consumer.try_pop() is None
    assert producer.try_push(b"apple")
    producer.push(b"")
    producer.push(b"cherry", timeout=0)
    assert (consumer.pop(), consumer.pop(0), consumer.try_pop(), consumer.try_pop()) == (b"apple", b"", b"cherry", None)


@pytest.mark.parametrize(
    "record",
    [
        bytes(range(256)),
        bytearray(b"apple"),
        memoryview(b"xapple")[1:],
        array.array("d", [1.5, 2.5]),
        np.arange(12, dtype="<i4").reshape(3, 4),
        np.float64(1.5),
        np.zeros((0, 3)),
        type("Name", (bytes,), {})(b"apple"),
    ],
    ids=lambda r: type(r).__name__,
)
def test_any_contiguous_buffer_is_a_record(ends, record):
    producer, consumer = ends
    bits = bytes(memoryview(record).cast("B")) if memoryview(record).nbytes else b""
    producer.push(record)
    assert producer.try_push(record)
    assert producer.push_many([record, record]) == 2
    assert consumer.pop_many(9) == [bits] * 4


def test_a_transfer_buffer_is_a_record(ends):
    producer, consumer = ends
    buffer = offloop.TransferBuffer.from_bytes(b"apple")
    producer.push(buffer)
    assert consumer.pop() == b"apple"
    buffer.transfer()
    with pytest.raises(offloop.DetachedError):
        producer.push(buffer)


def test_options_and_properties():
    with RingBuffer.create("spsc", capacity=5000, on_full="reject") as ring:
        assert (ring.kind, ring.capacity, ring.closed) == ("spsc", 8192, False)
        assert ring.max_record_len == 4096 - 8
        assert repr(ring) == 'RingBuffer(kind="spsc", capacity=8192)'
        producer = ring.producer()
        n = fill(producer)
        with pytest.raises(offloop.Full, match="capacity=8192"):
            producer.push(b"x" * 1000)
        with pytest.raises(offloop.Full):
            producer.push_many([b"x" * 1000])
        consumer = ring.consumer()
        assert list(iter(consumer.try_pop, None)) == [b"x" * 1000] * n
    assert ring.closed


def test_a_batch_is_seen_when_it_is_flushed():
    ring = RingBuffer.create("spsc", capacity=1 << 16)
    producer, consumer = ring.producer(batch=True), ring.consumer()
    producer.push(b"apple")
    assert ring.stat()["lanes"][0]["pushed"] == 0
    producer.flush()
    assert ring.stat()["lanes"][0]["pushed"] == 1
    assert consumer.try_pop() == b"apple"
    for _ in range(64):
        producer.push(b"x" * 100)
    assert ring.stat()["lanes"][0]["pushed"] > 1, "a batch ends by its size"
    producer.close()
    assert len(consumer.pop_many(1000)) == 64, "closing publishes"


def test_push_many_goes_in_whole_and_keeps_the_mode(ring):
    producer, consumer = ring.producer(batch=True), ring.consumer()
    assert producer.push_many([b"apple", b"pear"]) == 2
    assert ring.stat()["lanes"][0]["pushed"] == 0, "the batch goes on"
    producer.flush()
    assert consumer.pop_many(1) == [b"apple"]
    assert consumer.pop_many(0) == []
    assert consumer.pop_many(5) == [b"pear"]
    producer.close()
    producer = ring.producer()
    assert producer.push_many(iter([])) == 0
    producer.push_many(b"%d" % n for n in range(20))
    producer.push(b"last")
    assert consumer.pop_many(100) == [b"%d" % n for n in range(20)] + [b"last"]


def test_push_many_says_how_far_it_came(ends):
    producer, consumer = ends
    with pytest.raises(offloop.TimeoutError) as e:
        producer.push_many([b"x" * 1000] * 100, timeout=0)
    assert 0 < e.value.pushed < 5
    assert len(consumer.pop_many(100)) == e.value.pushed
    with pytest.raises(offloop.InvalidError) as e:
        producer.push_many([b"x", b"y", "text"])
    assert e.value.pushed == 2
    assert consumer.pop_many(100) == [b"x", b"y"]

    def broken():
        yield b"x"
        raise KeyError("y")

    with pytest.raises(KeyError) as e:
        producer.push_many(broken())
    assert e.value.pushed == 1


@pytest.mark.parametrize("seed", range(8))
def test_as_a_deque_does(seed):
    rng = random.Random(seed)
    capacity = rng.choice([4096, 8192])
    ring = RingBuffer.create("spsc", capacity=capacity)
    batch = seed % 2 == 1
    producer, consumer = ring.producer(batch=batch), ring.consumer()
    model: deque[bytes] = deque()
    longest = ring.max_record_len
    seen = 0

    def record():
        size = rng.choice([0, 1, rng.randrange(64), rng.randrange(1, 64) * 8, rng.randrange(longest + 1), longest])
        return rng.randbytes(size)

    def put(accepted, item):
        if accepted:
            model.append(item)
        elif not model:
            # Room comes back an eighth of the ring at a time, and whenever the consumer finds nothing.
            assert consumer.try_pop() is None
            assert producer.try_push(item), "an empty ring takes any record"
            model.append(item)

    for step in range(3000):
        match rng.randrange(8):
            case 0 | 1:
                put(producer.try_push(item := record()), item)
            case 2:
                item = record()
                try:
                    with producer.claim(len(item), timeout=0) as view:
                        view[:] = item
                        if rng.random() < 0.3:
                            raise KeyError
                    model.append(item)
                except KeyError:
                    pass
                except offloop.TimeoutError:
                    put(False, item)
            case 3:
                items = [record() for _ in range(rng.randrange(5))]
                try:
                    producer.push_many(items, timeout=0)
                    model.extend(items)
                except offloop.TimeoutError as e:
                    model.extend(items[: e.pushed])
            case 4 | 5:
                producer.flush()
                item = consumer.try_pop()
                assert item == (model.popleft() if model else None), step
                seen += item is not None
            case 6:
                producer.flush()
                n = rng.randrange(4)
                taken: list[bytes] = []
                assert consumer.read(n, lambda v, taken=taken: taken.append(bytes(v))) == min(n, len(model))
                assert taken == [model.popleft() for _ in taken]
            case 7:
                producer.flush()
                if model:
                    got = consumer.pop_many(n := rng.randrange(1, 4))
                    assert got == [model.popleft() for _ in range(min(n, len(model)))]
    assert seen > 100
    producer.flush()
    ring.close()
    assert list(consumer) == list(model)


# ---- views of the ring's own memory ----


def test_a_claim_is_written_in_place(ends):
    producer, consumer = ends
    with producer.claim(16) as view:
        assert isinstance(view, memoryview)
        assert (view.nbytes, view.readonly, view.format) == (16, False, "B")
        np.frombuffer(view, dtype="<i4")[:] = [1, 2, 3, 4]
        assert consumer.try_pop() is None, "nothing is seen before the end"
    assert struct.unpack("<4i", consumer.pop()) == (1, 2, 3, 4)
    with pytest.raises(ValueError, match="released"):
        view[0] = 1
    with producer.claim(0):
        pass
    assert consumer.pop() == b""


def test_an_exception_aborts_a_claim(ends):
    producer, consumer = ends
    with pytest.raises(KeyError), producer.claim(10) as view:
        view[:5] = b"apple"
        raise KeyError
    producer.push(b"pear")
    assert consumer.pop() == b"pear"


@pytest.mark.parametrize("keep", [lambda v: np.frombuffer(v, "u1"), lambda v: v[2:], memoryview], ids=["numpy", "slice", "view"])
def test_a_view_of_a_claim_that_is_kept_aborts_it(ends, keep):
    producer, consumer = ends
    with pytest.raises(offloop.InUseError, match="still alive") as e, producer.claim(10) as view:
        kept = keep(view)
    assert isinstance(e.value, BufferError)
    del e
    for call in (lambda: producer.try_push(b"x"), lambda: producer.push(b"x"), lambda: producer.push_many([b"x"])):
        with pytest.raises(offloop.InUseError):
            call()
    with pytest.raises(offloop.InUseError), producer.claim(4):
        pass
    kept[:] = kept[:]  # still the ring's memory, which nobody else was given
    del kept
    producer.push(b"pear")
    assert (consumer.pop(), consumer.try_pop()) == (b"pear", None)


def test_a_claim_stays_closed_behind_its_view(ends):
    producer, _ = ends
    with producer.claim(8) as view:
        exporter = view.obj
    with pytest.raises(BufferError, match="over"):
        memoryview(exporter)


def test_a_claim_that_is_dropped_makes_no_record(ends):
    producer, consumer = ends
    claim = producer.claim(8)
    claim.__enter__()
    with pytest.raises(offloop.InUseError):
        producer.push(b"x")
    del claim
    producer.push(b"pear")
    assert (consumer.pop(), consumer.try_pop()) == (b"pear", None)


def test_claims_do_not_nest(ends):
    producer, consumer = ends
    with producer.claim(8) as view:
        view[:] = b"12345678"
        for call in (lambda: producer.try_push(b"x"), lambda: producer.claim(4).__enter__()):
            with pytest.raises(offloop.InUseError):
                call()
    assert consumer.pop() == b"12345678"
    claim = producer.claim(4)
    with pytest.raises(offloop.InvalidError, match="not open"):
        claim.__exit__(None, None, None)


def test_a_producer_closed_in_a_claim_keeps_its_seat_until_the_view_is_gone(ring):
    producer, consumer = ring.producer(), ring.consumer()
    with pytest.raises(offloop.ClosedError), producer.claim(8) as view:
        view[:] = b"12345678"
        producer.close()
        with pytest.raises(offloop.InUseError):
            ring.producer()
    assert [p["role"] for p in ring.stat()["participants"] if p["alive"]] == ["consumer"], "the block has ended"
    producer.close()
    ring.producer().push(b"pear")
    assert consumer.pop() == b"pear"


def test_a_handle_closed_behind_a_kept_view_leaves_its_seat_with_the_view(ring):
    producer, consumer = ring.producer(), ring.consumer()
    with pytest.raises(offloop.ClosedError), producer.claim(8) as view:
        kept = view[2:]
        closing = threading.Thread(target=producer.close)
        closing.start()
        closing.join()
    producer.close()
    with pytest.raises(offloop.InUseError):
        ring.producer()
    with pytest.raises(offloop.ClosedError):
        producer.try_push(b"x")
    kept.release()
    ring.producer().push(b"apple")

    def look(view):
        nonlocal kept
        kept = view[1:]
        consumer.close()

    with pytest.raises(offloop.InUseError, match="still alive"):
        consumer.read(1, look)
    with pytest.raises(offloop.InUseError):
        ring.consumer()
    assert bytes(kept) == b"pple"
    kept.release()
    ring.consumer()


def test_a_claim_cannot_be_looked_at_anew_behind_a_close(ring):
    producer = ring.producer()
    with pytest.raises(offloop.ClosedError), producer.claim(8) as view:
        exporter = view.obj
        view.release()
        producer.close()
        with pytest.raises(BufferError, match="over"):
            memoryview(exporter)
    ring.producer()


def test_a_producer_dropped_with_a_view_keeps_its_seat(ring):
    producer = ring.producer()
    with pytest.raises(offloop.InUseError), producer.claim(8) as view:
        kept = np.frombuffer(view, "u1")
    del producer, view
    gc.collect()
    with pytest.raises(offloop.InUseError):
        ring.producer()
    del kept
    gc.collect()
    ring.producer().push(b"pear")
    assert ring.consumer().pop() == b"pear"


def test_read_shows_records_in_place(ends):
    producer, consumer = ends
    producer.push_many(np.full(4, n, "<i4") for n in range(5))
    sums, views = [], []

    def look(view):
        assert (view.readonly, view.nbytes) == (True, 16)
        sums.append(int(np.frombuffer(view, "<i4").sum()))
        views.append(view)

    assert consumer.read(3, look) == 3
    assert consumer.read(100, look) == 2
    assert consumer.read(100, look) == 0
    assert consumer.read(0, look) == 0
    assert sums == [0, 4, 8, 12, 16]
    for view in views:
        with pytest.raises(ValueError, match="released"):
            view[0]


def test_wait_leaves_the_record_where_it_is(ends):
    producer, consumer = ends
    with pytest.raises(offloop.TimeoutError):
        consumer.wait(timeout=0)
    producer.push(b"apple")
    consumer.wait()
    consumer.wait(timeout=0)
    assert consumer.pop() == b"apple"


def test_read_is_zero_copy(ends):
    producer, consumer = ends
    producer.push(b"apple")
    producer.push(b"apple")
    where = []
    consumer.read(2, lambda v: where.append(np.frombuffer(v, "u1").__array_interface__["data"][0]))
    assert where[1] - where[0] == 16, "the second record lies behind the first"


def test_a_record_at_which_read_raises_is_taken(ends):
    producer, consumer = ends
    producer.push_many([b"apple", b"pear"])
    with pytest.raises(KeyError):
        consumer.read(2, lambda v: {}[bytes(v)])
    assert consumer.pop() == b"pear"


def test_a_view_of_a_record_that_is_kept_holds_the_consumer(ends):
    producer, consumer = ends
    producer.push_many([b"apple", b"pear"])
    kept = []
    with pytest.raises(offloop.InUseError, match="still alive"):
        consumer.read(2, lambda v: kept.append(np.frombuffer(v, "u1")))
    for call in (consumer.try_pop, consumer.pop, lambda: consumer.read(1, print), lambda: consumer.pop_many(1)):
        with pytest.raises(offloop.InUseError):
            call()
    fill(producer)
    assert bytes(kept[0]) == b"apple", "nobody overwrites it"
    kept.clear()
    assert consumer.pop() == b"pear"


@pytest.mark.parametrize("kind", ["spsc", "mpsc", "mpmc"])
@pytest.mark.parametrize("closed_by", ["the callback", "later"])
def test_a_record_that_was_shown_is_taken_when_its_consumer_is_closed_behind_a_kept_view(kind, closed_by):
    ring = RingBuffer.create(kind, capacity=4096)
    producer, consumer = ring.producer(), ring.consumer()
    producer.push_many([b"apple", b"pear", b"plum"])
    kept = []

    def look(view):
        kept.append(view[:])
        if closed_by == "the callback" and bytes(view) == b"pear":
            consumer.close()

    assert consumer.read(1, lambda view: None) == 1
    with pytest.raises(offloop.InUseError, match="still alive"):
        consumer.read(2, look)
    consumer.close()
    assert [bytes(view) for view in kept] == [b"pear"]
    kept[0].release()
    successor = ring.consumer()
    assert (successor.try_pop(), successor.redelivered, successor.try_pop()) == (b"plum", False, None)


def test_a_consumer_is_not_used_from_inside_read(ends):
    producer, consumer = ends
    producer.push(b"apple")

    def again(_view):
        with pytest.raises(offloop.InUseError, match="another call"):
            consumer.try_pop()
        consumer.close()

    assert consumer.read(1, again) == 1
    with pytest.raises(offloop.ClosedError):
        consumer.try_pop()


# ---- ends ----


def test_a_closed_ring_is_drained_first(ring, ends):
    producer, consumer = ends
    producer.push_many([b"apple", b"pear"])
    ring.close()
    ring.close()
    with pytest.raises(offloop.ClosedError):
        producer.push(b"x")
    assert [*consumer] == [b"apple", b"pear"]
    for call in (consumer.try_pop, consumer.pop, lambda: consumer.pop_many(1), lambda: consumer.read(1, print)):
        with pytest.raises(offloop.ClosedError, match="drained"):
            call()
    with pytest.raises(offloop.ClosedError):
        ring.producer()


def open_now():
    """File descriptors, and mappings of rings."""
    gc.collect()
    return len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("memfd:offloop")


@pytest.mark.parametrize("kind", ["spsc", "mpsc", "broadcast", "mpmc"])
def test_fds_and_memory_of_a_closed_ring_go_with_the_last_of_its_handles(kind):
    before = open_now()
    rings, handles = [], []
    for n in range(250):
        with RingBuffer.create(kind, capacity=4096, max_participants=2) as ring:
            producer, consumer = ring.producer(batch=n % 2 == 0), ring.consumer()
            producer.push(b"apple")
            consumer.fileno()
        producer.close()
        assert ring.fds, "its consumer goes on"
        assert list(consumer) == [b"apple"]
        if n % 4 < 2:
            consumer.close()
        else:
            del consumer
        assert ring.closed
        rings.append(ring)
        handles.append(producer)
    assert open_now() == before, "whoever still has the objects"
    ring = rings[0]
    assert (ring.kind, ring.capacity, ring.path, ring.stat()["closed"]) == (kind, 4096, None, True)
    for call in (ring.producer, lambda: ring.fds, ring.remove):
        with pytest.raises(offloop.ClosedError):
            call()
    ring.close()
    assert list(ring.consumer()) == []


def test_what_waits_in_a_closed_ring_is_there_for_a_consumer_that_comes_later():
    before = open_now()
    with RingBuffer.create("spsc", capacity=4096) as ring, ring.producer() as producer:
        producer.push_many([b"apple", b"pear"])
    with ring.consumer() as consumer:
        assert consumer.pop() == b"apple"
    assert open_now() > before
    with ring.consumer() as consumer:
        assert list(consumer) == [b"pear"]
    assert open_now() == before


def test_a_view_that_is_kept_keeps_the_memory_of_a_closed_ring():
    before = open_now()
    ring = RingBuffer.create("spsc", capacity=4096)
    producer, consumer = ring.producer(), ring.consumer()
    producer.push(b"apple")
    kept = []
    with pytest.raises(offloop.InUseError):
        consumer.read(1, lambda view: kept.append(view[:]))
    for one in (producer, consumer, ring):
        one.close()
    assert bytes(kept[0]) == b"apple"
    assert open_now() != before
    kept[0].release()
    assert open_now() == before


def test_a_closed_ring_with_a_path_goes_when_its_name_has_gone_too():
    before = open_now()
    with RingBuffer.create("spsc", capacity=4096, path=f"/dev/shm/offloop-test-ends-{os.getpid()}") as ring:
        there = open_now()
    assert open_now() == there, "its records would be asked for by the name"
    ring.remove()
    assert open_now() == before


def test_a_closed_handle_leaves_its_seat(ring):
    with ring.producer() as producer, ring.consumer() as consumer:
        with pytest.raises(offloop.InUseError, match="every seat"):
            ring.producer()
        with pytest.raises(offloop.InUseError, match="every seat"):
            ring.consumer()
        producer.push(b"apple")
    producer.close()
    calls = [
        lambda: producer.try_push(b""),
        lambda: producer.push(b""),
        lambda: producer.push_many([]),
        lambda: producer.claim(1).__enter__(),
        producer.flush,
        producer.fileno,
        consumer.try_pop,
        consumer.pop,
        consumer.wait,
        lambda: consumer.pop_many(1),
        lambda: consumer.read(1, print),
        consumer.fileno,
    ]
    for call in calls:
        with pytest.raises(offloop.ClosedError, match="this handle was closed"):
            call()
    assert list(consumer) == []
    assert ring.consumer().pop() == b"apple"
    ring.producer().push(b"pear")


def test_dropped_handles_leave_their_seats(ring):
    ring.producer().push(b"apple")
    assert ring.consumer().pop() == b"apple"
    assert not ring.consumer().redelivered


def test_timeouts(ends):
    producer, consumer = ends
    for timeout in (0, 0.05, -1):
        with pytest.raises(offloop.TimeoutError, match="no record") as e:
            consumer.pop(timeout)
        assert isinstance(e.value, TimeoutError)
    fill(producer)
    for timeout in (0, 0.05):
        with pytest.raises(offloop.TimeoutError, match="no room"):
            producer.push(b"x" * 1000, timeout)
        with pytest.raises(offloop.TimeoutError, match="no room"):
            producer.claim(1000, timeout).__enter__()
    with pytest.raises(offloop.InvalidError, match="not a number"):
        consumer.pop(float("nan"))
    assert consumer.pop(float("inf")) == b"x" * 1000


# ---- what is refused ----


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: RingBuffer.create("queue"), offloop.InvalidError, "kind=queue"),
        (lambda: RingBuffer.create(1), TypeError, None),
        (lambda: RingBuffer.create("spsc", capacity=0), offloop.InvalidError, "capacity is 0"),
        (lambda: RingBuffer.create("spsc", capacity=-1), offloop.InvalidError, "out of range"),
        (lambda: RingBuffer.create("spsc", capacity=10**30), offloop.InvalidError, "out of range"),
        (lambda: RingBuffer.create("spsc", capacity=1 << 40), offloop.TooLargeError, "max="),
        (lambda: RingBuffer.create("spsc", capacity=4096.5), TypeError, None),
        (lambda: RingBuffer.create("spsc", max_participants=3), offloop.InvalidError, "participants=3"),
        (lambda: RingBuffer.create("spsc", on_full="drop"), offloop.InvalidError, "on_full=drop"),
        (lambda: RingBuffer.create("spsc", on_full="overwrite"), offloop.InvalidError, "broadcast"),
        (lambda: RingBuffer.create("spsc", slot_size=256), offloop.UnsupportedError, "slot_size=256"),
        (lambda: RingBuffer.create("mpmc", slot_size=0), offloop.InvalidError, "slot size is 0"),
        (lambda: RingBuffer.create("mpmc", slot_size=1 << 22), offloop.TooLargeError, "max="),
        (lambda: RingBuffer.create("spsc").consumer(ack="manual"), offloop.UnsupportedError, "kind=spsc"),
        (lambda: RingBuffer.create("spsc").consumer(ack="never"), offloop.InvalidError, "ack=never"),
        (lambda: RingBuffer.create("spsc").fileno(), offloop.InvalidError, "polled"),
        (lambda: pickle.dumps(RingBuffer.create("spsc")), offloop.UnserializableError, "fds"),
        (lambda: RingBuffer(), TypeError, None),
    ],
)
def test_bad_options(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize(
    ("record", "error", "match"),
    [
        ("text", offloop.InvalidError, "encode it"),
        (None, offloop.InvalidError, "type=NoneType"),
        (17, offloop.InvalidError, "type=int"),
        (np.arange(10)[::2], offloop.InvalidError, "not contiguous"),
        (np.zeros((4, 4)).T, offloop.InvalidError, "not contiguous"),
        (memoryview(b"apple")[::-1], offloop.InvalidError, "not contiguous"),
        (bytes(2041), offloop.TooLargeError, "max_record_len=2040"),
        (bytes(3 << 20), offloop.TooLargeError, "max_record_len=2040"),
    ],
    ids=["str", "None", "int", "strided", "transposed", "reversed", "too long", "much too long"],
)
def test_bad_records(ends, record, error, match):
    producer, consumer = ends
    for call in (producer.try_push, producer.push, lambda r: producer.push_many([r])):
        with pytest.raises(error, match=match):
            call(record)
    producer.push(b"apple")
    assert (consumer.try_pop(), consumer.try_pop()) == (b"apple", None)


def test_bad_arguments(ends):
    producer, consumer = ends
    for call in (
        lambda: producer.claim("1"),
        lambda: producer.claim(1.5),
        lambda: producer.push(b"", "soon"),
        lambda: producer.push(),
        lambda: producer.push_many(7),
        lambda: consumer.pop("soon"),
        lambda: consumer.pop_many("9"),
        lambda: consumer.read(None, print),
    ):
        with pytest.raises(TypeError):
            call()
    for call in (lambda: producer.claim(-1), lambda: consumer.pop_many(-1), lambda: consumer.read(-1, print)):
        with pytest.raises(offloop.InvalidError, match="out of range"):
            call()
    with pytest.raises(offloop.TooLargeError):
        producer.claim(2041).__enter__()
    producer.push(b"apple")
    with pytest.raises(TypeError):
        consumer.read(1, None)


# ---- other kinds ----


def test_mpsc_keeps_the_order_of_each_producer():
    ring = RingBuffer.create("mpsc", capacity=4096, max_participants=4)
    producers = [ring.producer() for _ in range(3)]
    with pytest.raises(offloop.InUseError):
        ring.producer()

    def send(at):
        for n in range(2000):
            producers[at].push(b"%d %d" % (at, n))

    threads = [threading.Thread(target=send, args=(at,)) for at in range(3)]
    for thread in threads:
        thread.start()
    consumer = ring.consumer()
    seen = [[], [], []]
    for _ in range(6000):
        at, n = map(int, consumer.pop().split())
        seen[at].append(n)
    for thread in threads:
        thread.join()
    assert seen == [list(range(2000))] * 3


def test_broadcast_shows_every_record_to_every_consumer():
    with RingBuffer.create("broadcast", capacity=4096, max_participants=3) as ring:
        consumers = [ring.consumer() for _ in range(2)]
        producer = ring.producer()
        got = [[], []]
        threads = [threading.Thread(target=lambda i=i: got[i].extend(consumers[i])) for i in range(2)]
        for thread in threads:
            thread.start()
        sent = [b"%d" % n for n in range(3000)]
        producer.push_many(sent)
        ring.close()
        for thread in threads:
            thread.join()
        assert got == [sent, sent]


def test_an_overwriting_ring_counts_what_a_slow_consumer_lost():
    ring = RingBuffer.create("broadcast", capacity=4096, on_full="overwrite")
    consumer, producer = ring.consumer(), ring.producer()
    count = 1000
    for n in range(count):
        assert producer.try_push(b"%03d" % n * 10)
    views = []
    assert consumer.read(1, lambda v: views.append(bytes(v))) == 1
    ring.close()
    left = views + list(consumer)
    assert left == [b"%03d" % n * 10 for n in range(count - len(left), count)]
    assert consumer.lost == count - len(left) > 0


# ---- threads and leaks ----


def test_nothing_is_left_behind():
    def use():
        with RingBuffer.create("spsc", capacity=4096) as ring, ring.producer() as producer, ring.consumer() as consumer:
            producer.push(b"apple")
            consumer.pop()
            producer.fileno()
            consumer.fileno()
            with producer.claim(3):
                pass
            consumer.read(1, bytes)

    use()
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("offloop-ring")
    for _ in range(100):
        use()
    gc.collect()
    assert (len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("offloop-ring")) == before


def test_threads_both_ways():
    there, back = (RingBuffer.create("spsc", capacity=4096) for _ in range(2))

    def echo():
        with back, back.producer() as out:
            for record in there.consumer():
                out.push(record)

    thread = threading.Thread(target=echo)
    thread.start()
    rng = random.Random(1)
    sent = [rng.randbytes(rng.randrange(300)) for _ in range(5000)]

    def send():
        with there, there.producer() as producer:
            for record in sent:
                producer.push(record)

    sender = threading.Thread(target=send)
    sender.start()
    assert list(back.consumer()) == sent
    sender.join()
    thread.join()


def test_a_waiting_handle_is_in_use_and_can_be_closed(ring):
    producer, consumer = ring.producer(), ring.consumer()
    fill(producer)
    for handle, wait, touch in ((producer, lambda: producer.push(bytes(1000)), producer.flush), (consumer, consumer.pop, consumer.try_pop)):
        if handle is consumer:
            while consumer.try_pop() is not None:
                pass
        raised = []

        def waits(wait=wait, raised=raised):
            try:
                wait()
            except offloop.OffloopError as e:
                raised.append(e)

        thread = threading.Thread(target=waits)
        thread.start()
        while True:
            try:
                touch()
            except offloop.InUseError:
                break
        handle.close()
        thread.join()
        assert isinstance(raised[0], offloop.ClosedError)
    ring.consumer()
    ring.producer()


def test_long_records_let_other_threads_run():
    ring = RingBuffer.create("spsc", capacity=32 << 20)
    producer, consumer = ring.producer(), ring.consumer()
    data = random.Random(3).randbytes(10 << 20)
    for record in (data, bytearray(data), memoryview(data)):
        producer.push(record)
        got = consumer.pop()
        assert zlib.crc32(got) == zlib.crc32(data)
        assert producer.try_push(record)
        assert consumer.pop_many(2) == [data]
        assert len(consumer.pop(0.0) if producer.try_push(b"") else b"x") == 0


def test_the_ring_speaks_for_the_fd_of_its_consumer(ring):
    producer = ring.producer()
    assert ring.fileno() == producer.fileno()
    consumer = ring.consumer()
    assert ring.fileno() == consumer.fileno()
    del consumer
    with pytest.raises(offloop.InvalidError):
        ring.fileno()
