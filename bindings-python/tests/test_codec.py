"""The codec through Python: the shared vectors, what other packages write, and what Python makes of each value."""

import json
import math
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgpack
import numpy
import offloop
import pytest
from offloop import _native

VECTORS = json.loads((Path(__file__).parents[2] / "tests/vectors/codec.json").read_text())
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

encode = _native._encode_value
decode = _native._decode_value


def named(entries):
    return [pytest.param(e, id=e["name"]) for e in entries if "beside" not in e]


def key(tree):
    value = expected(tree)
    return tuple(value) if isinstance(value, list) else value


def expected(tree):
    """What a value of the vectors is in Python."""
    if isinstance(tree, list):
        return [expected(t) for t in tree]
    if not isinstance(tree, dict):
        return tree
    if len(tree) == 1 and next(iter(tree)).startswith("$"):
        form, v = next(iter(tree.items()))
        match form:
            case "$hex":
                return bytes.fromhex(v)
            case "$date":
                return EPOCH + timedelta(milliseconds=v)
            case "$time":
                return EPOCH + timedelta(seconds=v[0], microseconds=v[1] // 1000)
            case "$float":
                return float(v)
            case "$int":
                return int(v)
            case "$map":
                return {key(k): expected(i) for k, i in v}
            case "$typed":
                dtype = {"u": "u", "i": "i", "f": "f"}[v["dtype"][0]] + str(int(v["dtype"][1:]) // 8)
                elements = [int(e) if isinstance(e, str) else e for e in v["elements"]]
                return numpy.array(elements, dtype).reshape(v["shape"])
            case "$error":
                return v
    return {k: expected(v) for k, v in tree.items()}


def same(got, want):
    if isinstance(want, numpy.ndarray):
        return got.dtype == want.dtype and got.shape == want.shape and bool((got == want).all())
    if isinstance(want, float):
        return type(got) is float and struct.pack("<d", got) == struct.pack("<d", want)
    if isinstance(want, list):
        return type(got) is list and len(got) == len(want) and all(map(same, got, want))
    if isinstance(want, dict):
        return list(got) == list(want) and all(same(got[k], want[k]) for k in want)
    return type(got) is type(want) and got == want


def same_error(got, want):
    assert isinstance(got, offloop.TaskFailedError)
    assert (got.name, got.message, got.stack) == (want["name"], want["message"], want.get("stack", ""))
    assert got.properties == want.get("properties", {})
    cause = want.get("cause")
    if isinstance(cause, dict):
        same_error(got.__cause__, cause["$error"])
    else:
        assert got.__cause__ is None
        assert getattr(got, "cause", None) == cause


@pytest.mark.parametrize("entry", named(VECTORS["values"]))
def test_values(entry):
    want = expected(entry.get("pythonValue", entry["value"]))
    for form in [entry["hex"], *entry.get("also", [])]:
        got = decode(bytes.fromhex(form))
        if isinstance(entry["value"], dict) and "$error" in entry["value"]:
            same_error(got, want)
        else:
            assert same(got, want), got
        assert encode(got).hex() == entry.get("python", entry["hex"]), form


@pytest.mark.parametrize("entry", named(VECTORS["hostile"]))
def test_hostile_messages_are_refused(entry):
    with pytest.raises(offloop.OffloopError) as e:
        decode(bytes.fromhex(entry["hex"]), **entry.get("options", {}))
    assert e.value.kind == entry["kind"]
    for part in entry["contains"]:
        assert part in str(e.value)


def test_what_msgpack_writes_is_read_and_the_other_way_round():
    value = {
        "nil": None,
        "yes": True,
        "numbers": [0, 127, 128, 65536, 2**32, 2**63 - 1, 2**64 - 1, -1, -33, -(2**63), 1.5, 1.0, 1e300],
        "text": "grüße 🦀" * 40,
        "bytes": bytes(range(256)) * 2,
        "date": datetime(2023, 11, 14, 22, 13, 20, 123456, UTC),
        "early": EPOCH - timedelta(microseconds=1),
        "nested": {"list": [[], {}, [[1]]], "": "empty key", "keys": {1: "one", b"b": 2}},
        "many": list(range(70_000)),
    }
    theirs = msgpack.packb(value, datetime=True)
    assert decode(theirs) == value
    assert encode(value) == theirs
    assert msgpack.unpackb(encode(value), timestamp=3, strict_map_key=False) == value
    assert decode(msgpack.packb([1.5, -2.0], use_single_float=True)) == [1.5, -2.0]
    # What MessagePack has no form for is an extension that another reader may skip or keep.
    foreign = msgpack.unpackb(encode([2**70, 7]))
    assert foreign == [msgpack.ExtType(1, b"\0" + (2**70).to_bytes(9, "little")), 7]


def test_long_arrays_are_views_of_the_message():
    array = numpy.arange(100_000, dtype="f8").reshape(100, 1000)
    first, second = decode(encode([array, array + 1]))
    assert (first == array).all()
    assert first.flags.aligned
    assert first.flags.writeable
    assert isinstance(first.base.base.obj, offloop.TransferBuffer)
    first[:] = 0
    assert (second == array + 1).all()


def test_arrays_of_another_order_travel_in_c_order():
    array = numpy.asfortranarray(numpy.arange(6, dtype="i2").reshape(2, 3))
    for a in (array, array.T, array[:, ::2]):
        got = decode(encode(a))
        assert got.shape == a.shape
        assert (got == a).all()


def test_numpy_scalars_are_plain_values():
    scalars = [
        numpy.int8(-3),
        numpy.uint64(2**64 - 1),
        numpy.float32(1.5),
        numpy.float64(0.1),
        numpy.bool_(True),
        numpy.str_("t"),
        numpy.bytes_(b"b"),
        numpy.array(7),
    ]
    assert decode(encode(scalars)) == [-3, 2**64 - 1, 1.5, 0.1, True, "t", b"b", 7]
    assert decode(encode(numpy.datetime64("2024-01-02T03:04:05.678901"))) == datetime(2024, 1, 2, 3, 4, 5, 678901).astimezone(UTC)
    with pytest.raises(offloop.UnserializableError):
        encode(numpy.void(b"x").dtype)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (numpy.array([True, False]), "bool"),
        (numpy.zeros(0, "?"), "bool"),
        (numpy.zeros(2, "f2"), "float16"),
        (numpy.zeros(2, "g"), "float128"),
        (numpy.zeros(2, "c16"), "complex128"),
        (numpy.zeros(2, ">i4"), ">i4"),
        (numpy.zeros(2, "U1"), "<U1"),
        (numpy.zeros(2, "S1"), "|S1"),
        (numpy.zeros(2, "O"), "object"),
        (numpy.zeros(2, [("a", "i4"), ("b", "f8")]), "[('a', '<i4'), ('b', '<f8')]"),
        (numpy.zeros(2, "M8[ns]"), "datetime64[ns]"),
        (numpy.zeros(1, "M8[ns]"), "datetime64[ns]"),
        (numpy.zeros(0, "M8[us]"), "datetime64[us]"),
        (numpy.zeros(1, "m8[ns]"), "timedelta64[ns]"),
        (numpy.datetime64(5, "ns"), "datetime64[ns]"),
        (numpy.timedelta64(5, "ns"), "timedelta64[ns]"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_elements_that_other_languages_lack_are_refused_by_name(value, dtype):
    with pytest.raises(offloop.UnserializableError) as e:
        encode([value])
    assert f"type={type(value).__name__}, dtype={dtype}" in str(e.value)


def test_a_view_of_booleans_is_refused():
    with pytest.raises(offloop.UnserializableError, match=r"type=memoryview, format=\?"):
        encode(memoryview(b"\0\1").cast("?"))


def test_arrays_arrive_without_numpy_too(monkeypatch):
    message = encode([numpy.arange(6, dtype="i2").reshape(2, 3), numpy.zeros(1000)])
    monkeypatch.setitem(__import__("sys").modules, "numpy", None)
    short, long = decode(message)
    assert short.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (long.format, long.shape, long[999]) == ("d", (1000,), 0.0)


def raised(error):
    try:
        raise error
    except BaseException as e:
        return e


def test_exceptions_keep_name_traceback_cause_and_attributes():
    class ShopError(Exception):
        pass

    inner = raised(KeyError("k"))
    error = ShopError("sold out")
    error.item, error.lock = 7, __import__("threading").Lock()
    error.__cause__ = inner
    error.add_note("ask tomorrow")
    got = decode(encode(raised(error)))
    assert (got.name, got.message) == ("ShopError", "sold out")
    assert str(got) == "task failed: ShopError: sold out"
    assert "in raised" in got.stack
    assert "KeyError" not in got.stack
    assert got.properties == {"item": 7, "__notes__": ["ask tomorrow"]}
    assert (got.__cause__.name, got.__cause__.message) == ("KeyError", "'k'")
    again = decode(encode(got))
    assert (again.name, again.stack, again.properties) == (got.name, got.stack, got.properties)


def test_an_exception_without_a_cause_names_its_context():
    try:
        try:
            raise KeyError("k")
        except KeyError:
            raise ValueError("v")  # noqa: B904
    except ValueError as e:
        error = e
    assert decode(encode(error)).__cause__.name == "KeyError"
    error.__suppress_context__ = True
    assert decode(encode(error)).__cause__ is None


def test_own_errors_keep_their_class():
    with pytest.raises(offloop.CorruptError) as e:
        decode(b"\xc1")
    got = decode(encode(e.value))
    assert type(got) is offloop.CorruptError
    assert str(got) == str(e.value)
    assert got.properties["code"] == "ERR_OFFLOOP_CORRUPT"
    assert type(decode(encode(offloop.Full("full: no room")))) is offloop.Full


def test_an_exception_in_a_cycle_leaves_the_cycle_behind():
    error = ValueError("v")
    error.self, error.again, error.kept = error, [error], 1
    assert decode(encode(error)).properties == {"kept": 1}


def test_names_from_a_peer_set_no_attribute():
    message = bytes([0xC9]) + struct.pack(">I", 0)[:0]
    body = b"\x95\xa1E\xa1m\xa0\xc0\x82" + msgpack.packb("__class__") + b"\x01" + msgpack.packb("with_traceback") + b"\x02"
    got = decode(message + struct.pack(">I", len(body)) + b"\x04" + body)
    assert type(got) is offloop.TaskFailedError
    assert callable(got.with_traceback)
    assert got.properties == {"__class__": 1, "with_traceback": 2}


def test_what_python_has_no_form_for_is_said():
    with pytest.raises(offloop.UnsupportedError, match="seconds=-99999999999999"):
        decode(msgpack.packb(msgpack.Timestamp(-99999999999999)))
    with pytest.raises(offloop.UnsupportedError, match="type=map"):
        decode(b"\x81\x80\x01")
    assert decode(b"\x81\x91\x91\x01\x02") == {((1,),): 2}


def test_naive_datetimes_are_local():
    naive = datetime(2024, 1, 2, 3, 4, 5, 678901)
    assert decode(encode(naive)) == naive.astimezone(UTC)


def test_what_lies_deeper_than_the_limit_is_refused():
    deep = []
    for _ in range(127):
        deep = [deep]
    assert decode(encode(deep)) == deep
    with pytest.raises(offloop.TooLargeError, match="max_depth=128"):
        encode([deep])
    assert math.isnan(decode(encode(math.nan)))
