"""How a process comes to a ring: by fds, by a path; and what it refuses there."""

from __future__ import annotations

import ast
import fcntl
import gc
import os
import random
import shutil
import tempfile
from pathlib import Path

import offloop
import pytest
from offloop import RingBuffer


@pytest.fixture
def ring():
    with RingBuffer.create("spsc", capacity=4096) as ring:
        yield ring


MEMORY = 0  # of `fds`; the others are doorbells


def sealed(data, seals=fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW):
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def test_attach_checks_the_fds(ring, tmp_path):
    memory = os.pread(ring.fds[MEMORY], 1 << 20, 0)
    bells = ring.fds[1:]
    read, write = os.pipe()
    with open(tmp_path / "file", "wb+") as file, open("/dev/null") as null:
        file.write(memory)
        file.flush()
        closed = os.dup2(read, 900)  # a number that attaching itself does not use
        os.close(closed)
        bad = [
            ([], "needs fds"),
            (bells, "not a memfd"),
            ([ring.fds[MEMORY]], "one doorbell per seat"),
            (ring.fds[:-1], "one doorbell per seat"),
            ([*ring.fds, bells[0]], "one doorbell per seat"),
            ([read, *bells], "not a memfd"),
            ([file.fileno(), *bells], "not a memfd"),
            ([null.fileno(), *bells], "not a memfd"),
            ([closed, *bells], "not a memfd"),
            ([-1, *bells], "negative"),
            ([10**12, *bells], "out of range"),
            ([ring.fds[MEMORY], read, bells[1]], "not an eventfd"),
            ([ring.fds[MEMORY], ring.fds[MEMORY], bells[1]], "not an eventfd"),
        ]
        for fds, match in bad:
            with pytest.raises(offloop.InvalidError, match=match):
                RingBuffer.attach(fds)
        with pytest.raises(offloop.OsError) as e:
            RingBuffer.attach([ring.fds[MEMORY], closed, bells[1]])
        assert e.value.errno
        for fds in (7, None, [None, *bells], ["a", *bells]):
            with pytest.raises(TypeError):
                RingBuffer.attach(fds)
    for made, error, match in [
        (sealed(memory, 0), offloop.InvalidError, "sealed"),
        (sealed(memory, fcntl.F_SEAL_GROW), offloop.InvalidError, "sealed"),
        (sealed(memory[:-1]), offloop.CorruptError, "size"),
        (sealed(memory + b"\0"), offloop.CorruptError, "size"),
        (sealed(memory[:100]), offloop.CorruptError, "too short"),
        (sealed(b""), offloop.InvalidError, "empty"),
        (sealed(bytes(8192)), offloop.CorruptError, "magic"),
    ]:
        with pytest.raises(error, match=match):
            RingBuffer.attach([made, *bells])
        os.close(made)
    os.close(read)
    os.close(write)


@pytest.fixture
def path():
    """On tmpfs, as names of rings should be."""
    directory = tempfile.mkdtemp(dir="/dev/shm")
    yield Path(directory, "ring")
    shutil.rmtree(directory)


def test_a_ring_with_a_path(path):
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    ring = RingBuffer.create("spsc", capacity=8192, path=path, on_full="reject")
    assert ring.path == path
    with pytest.raises(offloop.UnsupportedError):
        ring.fds  # noqa: B018
    other = RingBuffer.attach(str(path))
    producer, consumer = ring.producer(), other.consumer()
    producer.push(b"apple")
    assert consumer.pop() == b"apple"
    producer.push(b"pear")
    stat = RingBuffer.inspect(path)
    assert stat == RingBuffer.inspect(str(path)) == ring.stat()
    assert {stat[k] for k in ("kind", "capacity", "on_full")} == {"spsc", 8192, "reject"}
    assert (stat["closed"], stat["poisoned"], stat["max_participants"]) == (False, False, 2)
    assert {(p["role"], p["pid"], p["alive"]) for p in stat["participants"]} == {
        ("consumer", os.getpid(), True),
        ("producer", os.getpid(), True),
    }
    assert (stat["lanes"][0]["pushed"], stat["lanes"][0]["used"]) == (2, stat["lanes"][0]["tail"] - stat["lanes"][0]["head"])
    with pytest.raises(offloop.ExistsError):
        RingBuffer.create("spsc", path=path)
    assert not RingBuffer.remove_stale(path)
    del ring, other, producer, consumer
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
    assert RingBuffer.attach(path).consumer().pop() == b"pear", "records wait for whoever attaches"
    assert RingBuffer.remove_stale(path)
    ring = RingBuffer.create("spsc", path=path)
    ring.remove()
    with pytest.raises(offloop.NotFoundError):
        RingBuffer.attach(path)


def test_inspect_has_the_keys_that_the_stub_and_the_docs_say(path):
    root = Path(__file__).parent.parent
    classes = {c.name: c for c in ast.walk(ast.parse((root / "python/offloop/_native.pyi").read_text())) if isinstance(c, ast.ClassDef)}
    stub = {name: [field.target.id for field in classes[name].body] for name in ("_RingStat", "_Participant", "_Lane")}
    ring = RingBuffer.create("mpmc", path=path)
    consumer = ring.consumer()
    stat = RingBuffer.inspect(path)
    assert [list(stat), list(stat["participants"][0]), list(stat["lanes"][0])] == list(stub.values())
    docs = (root.parent / "docs/rings.md").read_text()
    assert not [key for keys in stub.values() for key in keys if f"`{key}`" not in docs]
    consumer.close()
    ring.remove()


def test_paths_that_are_no_rings(path):
    for make in (lambda: path.write_bytes(bytes(8192)), lambda: os.mkfifo(path), path.mkdir, lambda: path.symlink_to("/dev/null")):
        make()
        if path.is_file() and not path.is_symlink():
            path.chmod(0o600)
        for call in (RingBuffer.attach, RingBuffer.inspect, lambda p: RingBuffer.create("spsc", path=p)):
            with pytest.raises(offloop.OffloopError):
                call(path)
        path.rmdir() if path.is_dir() else path.unlink()
    for call in (RingBuffer.attach, RingBuffer.inspect):
        with pytest.raises(offloop.NotFoundError):
            call(path)
    with pytest.raises(offloop.UnsupportedError):
        RingBuffer.create("spsc").remove()
    assert RingBuffer.create("spsc").path is None


def test_attached_twice_is_the_same_ring(ring):
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    other = RingBuffer.attach(ring.fds)
    other.producer().push(b"apple")
    assert (other.kind, other.capacity) == (ring.kind, ring.capacity)
    assert ring.consumer().pop() == b"apple"
    other.close()
    assert ring.closed
    del other
    assert len(os.listdir("/proc/self/fd")) == before, "an attached ring keeps no fd behind"


def scribble(rng):
    """Writes garbage into a ring in use, and goes on using it."""
    ring = RingBuffer.create("spsc", capacity=4096)
    producer, consumer = ring.producer(), ring.consumer()
    producer.push_many([b"x" * 100] * 10)
    consumer.pop()
    size = os.fstat(ring.fds[MEMORY]).st_size
    for _ in range(rng.randrange(1, 60)):
        at = rng.randrange(512, 512 + 2048) if rng.random() < 0.5 else rng.randrange(128, size - 8)
        os.pwrite(ring.fds[MEMORY], rng.randbytes(rng.choice([1, 4, 8])), at)
    found = 0
    for call in (lambda: producer.try_push(b"y" * 50), consumer.try_pop, lambda: consumer.read(3, bytes)) * 30:
        try:
            call()
        except offloop.CorruptError:
            found += 1
        except (offloop.ClosedError, offloop.PeerDiedError):
            pass
    return found


def test_garbage_in_the_ring_is_corrupt_and_not_a_crash():
    rng = random.Random(7)
    assert sum(scribble(rng) > 0 for _ in range(200)) > 20
