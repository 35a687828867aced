"""Native ops: the shared vectors, the generated wrappers, and other programs that read the results."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import inspect
import io
import json
import math
import os
import subprocess
import sys
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import offloop
import pytest
from offloop import _native, ops

ROOT = Path(__file__).parent.parent
VECTORS = ROOT.parent / "tests" / "vectors"


def generated(entry):
    if "input_text" in entry:
        return entry["input_text"].encode()
    if "input_hex" in entry:
        return bytes.fromhex(entry["input_hex"])
    if "input_base64" in entry:
        return base64.b64decode(entry["input_base64"])
    if "input_file" in entry:
        return (VECTORS / entry["input_file"]).read_bytes()
    if "input_repeat" in entry:
        return repeated(entry["input_repeat"])
    if "input_numbered" in entry:
        r = entry["input_numbered"]
        return "".join(r["text"].replace("%i", str(i)) for i in range(r["times"])).encode()
    if "input_cycle" in entry:
        r = entry["input_cycle"]
        return bytes(k % r["modulo"] for k in range(r["length"]))
    if "input_lcg" in entry:
        r = entry["input_lcg"]
        x, out = r["seed"], bytearray()
        for _ in range(r["length"]):
            x = (1664525 * x + 1013904223) % 2**32
            out.append(x >> 24)
        return bytes(out)
    return None


def repeated(r):
    return (r["text"].encode() if "text" in r else bytes.fromhex(r["hex"])) * r["times"]


def inputs(entry):
    if "inputs" in entry:
        return [generated(i) for i in entry["inputs"]]
    one = generated(entry)
    return [] if one is None else [one]


def value(tree):
    if isinstance(tree, list):
        return [value(t) for t in tree]
    if not isinstance(tree, dict):
        return tree
    if len(tree) == 1:
        ((key, v),) = tree.items()
        match key:
            case "$hex":
                return bytes.fromhex(v)
            case "$text":
                return v.encode()
            case "$repeat":
                return repeated(v)
            case "$date":
                return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=v)
            case "$float":
                return float(v)
            case "$int":
                return int(v)
    return {k: value(v) for k, v in tree.items()}


def same(got, want):
    if isinstance(want, float) and math.isnan(want):
        return math.isnan(got)
    if isinstance(want, list):
        return len(got) == len(want) and all(map(same, got, want))
    if isinstance(want, dict):
        return got.keys() == want.keys() and all(same(got[k], want[k]) for k in want)
    return got == want and isinstance(got, bool) == isinstance(want, bool)


def entries(kind):
    return list(every_entry(kind))


def every_entry(kind):
    for path in sorted((VECTORS / "ops").glob("*.json")):
        vectors = json.loads(path.read_text())
        for n, entry in enumerate(vectors.get(kind, [])):
            yield pytest.param(vectors["op"], entry, id=f"{vectors['op']}-{entry.get('name', n)}")


@pytest.fixture(scope="module")
def shared():
    with offloop.ThreadPool(2) as pool:
        yield pool


def params(entry, key="params"):
    return {k: value(v) for k, v in entry.get(key, {}).items()}


@pytest.mark.parametrize(("op", "entry"), entries("cases"))
def test_known_answers(shared, op, entry):
    data = inputs(entry)
    got = shared.submit(op, *data, **params(entry)).result()
    as_bytes = got.encode() if isinstance(got, str) else got
    if "output_hex" in entry:
        assert as_bytes == bytes.fromhex(entry["output_hex"])
    if "output_base64" in entry:
        assert as_bytes == base64.b64decode(entry["output_base64"])
    if "output_text" in entry:
        assert as_bytes == entry["output_text"].encode()
    if "output_file" in entry:
        assert as_bytes == (VECTORS / entry["output_file"]).read_bytes()
    if "output_sha256" in entry:
        assert hashlib.sha256(as_bytes).hexdigest() == entry["output_sha256"]
    if "output_length" in entry:
        assert len(as_bytes) == entry["output_length"]
    if entry.get("output_same"):
        assert as_bytes == data[0]
    if "output" in entry:
        assert same(got, value(entry["output"])), got


@pytest.mark.parametrize(("op", "entry"), entries("errors"))
def test_refusals(shared, op, entry):
    with pytest.raises(offloop.OffloopError) as e:
        shared.submit(op, *inputs(entry), **params(entry)).result()
    assert e.value.kind == entry["kind"]
    contains = entry.get("contains", [])
    for word in [contains] if isinstance(contains, str) else contains:
        assert word in str(e.value)


@pytest.mark.parametrize(("op", "entry"), entries("roundtrip"))
def test_round_trips(shared, op, entry):
    data = inputs(entry)
    packed = shared.submit(op, *data, **params(entry)).result()
    assert shared.submit(entry["inverse"], packed, **params(entry, "inverse_params")).result() == data[0]


def wrapper(name, root=ops):
    for part in name.split("."):
        root = getattr(root, part)
    return root


def test_wrappers_are_generated_from_the_table():
    """`OFFLOOP_BLESS=1` rewrites them."""
    arguments = [] if os.environ.get("OFFLOOP_BLESS") == "1" else ["--check"]
    done = subprocess.run([sys.executable, ROOT / "generate.py", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("op", _native._op_table(), ids=lambda op: op["name"])
def test_every_op_has_typed_wrappers(op):
    for root in (ops, ops.aio):
        f = wrapper(op["name"], root)
        assert op["about"] in f.__doc__.replace("\n", " ")
        keywords = [p.name for p in inspect.signature(f).parameters.values() if p.kind is p.KEYWORD_ONLY]
        assert keywords == [p["name"] for p in op["params"]]
    assert inspect.iscoroutinefunction(wrapper(op["name"], ops.aio))


def test_wrappers_run_short_and_long_inputs():
    for n in (0, 1, 1000, 64 << 10, (64 << 10) + 1, 5 << 20):
        data = os.urandom(n)
        assert ops.sha256(data) == hashlib.sha256(data).digest()
        assert asyncio.run(ops.aio.sha256(data)) == hashlib.sha256(data).digest()
    with pytest.raises(offloop.PanicError):
        ops.noop(panic=True)
    with pytest.raises(offloop.InvalidError, match="level"):
        ops.gzip(b"x", level=99)


def test_results_open_elsewhere():
    data = b"some text that repeats itself, " * 500
    assert gzip.decompress(ops.gzip(data)) == data
    assert zlib.decompress(ops.zlib(data)) == data
    assert zlib.decompress(ops.deflate(data), -15) == data
    assert ops.gunzip(gzip.compress(data)) == data
    assert ops.crc32(data) == zlib.crc32(data)
    for name in ("sha224", "sha256", "sha384", "sha512", "sha512_256"):
        assert wrapper(name)(data) == hashlib.new(name, data).digest()


def test_zstd_opens_in_zstandard():
    zstandard = pytest.importorskip("zstandard")
    data = b"some text that repeats itself, " * 500
    assert zstandard.decompress(ops.zstd(data)) == data
    assert ops.unzstd(zstandard.compress(data)) == data


def test_phc_strings_verify_elsewhere():
    argon2 = pytest.importorskip("argon2")
    bcrypt = pytest.importorskip("bcrypt")
    names = {op["name"] for op in _native._op_table()}
    if not {"password.hash", "password.verify"} <= names:
        pytest.skip("this build has no password.hash")
    hashed = ops.password.hash(b"correct horse", algorithm="argon2id", memory_kib=8192, iterations=1)
    assert argon2.PasswordHasher().verify(hashed, "correct horse")
    hashed = ops.password.hash(b"correct horse", algorithm="bcrypt", cost=5)
    assert bcrypt.checkpw(b"correct horse", hashed.encode())
    assert ops.password.verify(b"correct horse", hash=argon2.PasswordHasher(1, 8192, 1).hash("correct horse"))


def photo():
    image = pytest.importorskip("PIL.Image")
    out = io.BytesIO()
    image.radial_gradient("L").resize((640, 480)).convert("RGB").save(out, "JPEG", quality=90)
    return out.getvalue()


@pytest.mark.skipif(not hasattr(ops, "image"), reason="this build has no image ops")
def test_thumbnails_open_in_pillow():
    image = pytest.importorskip("PIL.Image")
    with image.open(io.BytesIO(ops.image.thumbnail(photo(), width=200))) as small:
        assert small.size == (200, 150)


@pytest.mark.skipif(not hasattr(ops, "image"), reason="this build has no image ops")
def test_a_truncated_image_is_corrupt():
    with pytest.raises(offloop.CorruptError):
        ops.image.thumbnail(photo()[:2000], width=200)


@pytest.mark.skipif(not hasattr(ops, "csv"), reason="this build has no csv ops")
def test_arrow_opens_in_pyarrow():
    ipc = pytest.importorskip("pyarrow.ipc")
    with ipc.open_stream(ops.csv.to_arrow(b"name,age\nann,31\nbob,27\n")) as reader:
        assert reader.read_all().to_pydict() == {"name": ["ann", "bob"], "age": [31, 27]}


def test_a_copy_without_memory_is_an_error(script):
    done = script(
        """
import errno, offloop, resource
data = bytearray(64 << 20)
offloop.ops.noop(b"")
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20), -1))
try:
    offloop.TransferBuffer.from_bytes(data)
except offloop.OsError as e:
    print(e.errno == errno.ENOMEM)
"""
    )
    assert done.stdout.split() == ["True"]


def test_options_that_hold_one_list_many_times_are_bounded():
    many = []
    for _ in range(40):
        many = [many, many]
    with pytest.raises(offloop.TooLargeError, match="max_items=262144"):
        ops.noop(sleep_ms=many)
    with pytest.raises(offloop.TooLargeError, match="max_items=262144"):
        ops.noop(sleep_ms=[0] * 262_144)
    with pytest.raises(offloop.InvalidError):
        ops.noop(sleep_ms=[0] * 262_142)


def test_option_values_of_every_kind_are_checked():
    for bad in (float("nan"), [1], {"a": 1}, b"x", datetime.now(UTC), 2**70, True):
        with pytest.raises(offloop.InvalidError):
            ops.noop(sleep_ms=bad)
    loop = []
    loop.append(loop)
    with pytest.raises(offloop.TooLargeError, match="nested"):
        ops.noop(sleep_ms=loop)
