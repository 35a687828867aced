"""A C plugin, compiled here, called by name."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

import offloop
import pytest

ROOT = Path(__file__).parent.parent.parent
COMPILER = shutil.which("cc")


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    if COMPILER is None:
        pytest.skip("no C compiler here")
    out = tmp_path_factory.mktemp("plugin") / "wordcount.so"
    source = ROOT / "examples" / "plugin" / "wordcount.c"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O2", "-I", ROOT / "include", "-o", out, source], check=True)
    return out


def test_a_plugin_adds_ops_to_its_pool(pool, plugin):
    names = pool.load(plugin)
    assert names
    assert set(names) <= set(pool.op_names)
    with pytest.raises(offloop.ExistsError):
        pool.load(plugin)
    assert pool.submit("wordcount", b"one two threes", min_length=4).result() == {"words": 1, "longest": 6}
    with pytest.raises(offloop.InvalidError, match="min_length"):
        pool.submit("wordcount", b"x", min_length="y").result()


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
