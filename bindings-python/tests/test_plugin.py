"""A C plugin, compiled here, called by name."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import offloop
import pytest

ROOT = Path(__file__).parent.parent.parent
COMPILER = shutil.which("cc")


def compiled(tmp_path_factory, source):
    if COMPILER is None:
        pytest.skip("no C compiler here")
    out = tmp_path_factory.mktemp("plugin") / f"{source.stem}.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O2", "-I", ROOT / "include", "-o", out, source], check=True)
    return out


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    return compiled(tmp_path_factory, ROOT / "examples" / "plugin" / "wordcount.c")


def test_a_plugin_adds_ops_to_its_pool(pool, plugin):
    names = pool.load(plugin)
    assert names
    assert set(names) <= set(pool.op_names)
    with pytest.raises(offloop.ExistsError):
        pool.load(plugin)
    assert pool.submit("wordcount", b"one two threes", min_length=4).result() == {"words": 1, "longest": 6}
    with pytest.raises(offloop.InvalidError, match="min_length"):
        pool.submit("wordcount", b"x", min_length="y").result()


def test_a_result_that_a_host_cannot_show_is_a_typed_error(pool, tmp_path_factory):
    """tests/plugins/odd.c; the Node.js suite has the same table."""
    pool.load(compiled(tmp_path_factory, ROOT / "tests" / "plugins" / "odd.c"))

    def odd(name):
        return pool.submit("odd", name.encode()).result()

    assert odd("first of python") == datetime(1, 1, 1, tzinfo=UTC)
    assert odd("last of python") == datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    for name in ["before python", "after python", "first of node", "last of node", "before node", "after node", "far"]:
        with pytest.raises(offloop.UnsupportedError, match=r"seconds=-?\d+"):
            odd(name)
    for name in ["no date", "far behind nothing", "far before nothing"]:
        with pytest.raises(offloop.InvalidError):
            odd(name)
    assert list(odd("empty")) == []
    assert odd("empty rows").shape == (0, 3)
    assert odd("square").tolist() == [[0x201, 0x403], [0x605, 0x807]]
    assert odd("scalar").shape == ()


def test_a_buffer_moves_at_the_call_although_another_input_is_copied_first(pool, plugin):
    pool.load(plugin)

    async def main():
        text = offloop.TransferBuffer.from_bytes(b"one two threes")
        task = asyncio.ensure_future(pool.run("wordcount", text, bytearray(16 << 20)))
        await asyncio.sleep(0)
        assert not pool.stats.submitted
        with pytest.raises(offloop.DetachedError):
            memoryview(text)
        assert (await task)["longest"] == 6
        assert text.detached

    asyncio.run(main())


@pytest.mark.parametrize("content", [b"", b"not a library"])
def test_what_is_no_plugin_is_refused(pool, tmp_path, content):
    path = tmp_path / "bad.so"
    path.write_bytes(content)
    with pytest.raises(offloop.InvalidError):
        pool.load(path)
    with pytest.raises(offloop.NotFoundError):
        pool.load(tmp_path / "missing.so")
    assert pool.submit("noop", b"x").result() == b"x"
