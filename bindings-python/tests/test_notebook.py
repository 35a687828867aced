"""Pools in a notebook's kernel: functions of cells, and `await` in a cell."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import offloop
import pytest
from jupyter_client.manager import start_new_kernel

pytest.importorskip("ipykernel")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = f"{Path(offloop.__file__).parent.parent}:{os.environ.get('PYTHONPATH', '')}"
    home = str(tmp_path_factory.mktemp("home"))
    manager, client = start_new_kernel(env={**os.environ, "PYTHONPATH": path, "HOME": home, "IPYTHONDIR": home})
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def cell(kernel: Any, code: str) -> str:
    """What a cell prints and shows."""
    out: list[str] = []

    def hear(message: dict[str, Any]) -> None:
        content = message["content"]
        if message["msg_type"] == "stream":
            out.append(content["text"])
        elif message["msg_type"] == "execute_result":
            out.append(content["data"]["text/plain"] + "\n")

    reply = kernel.execute_interactive(code, timeout=120, output_hook=hear)
    assert reply["content"]["status"] == "ok", "\n".join(reply["content"].get("traceback", []))
    return "".join(out)


def test_functions_of_cells_are_run_by_worker_processes(kernel: Any) -> None:
    cell(kernel, "import offloop, os\npool = offloop.ProcessPool(2)\nbase = 10\ndef add(n):\n    return n + base, os.getpid()")
    assert cell(kernel, "r = pool.submit(add, 1).result(60)\nr[0], r[1] != os.getpid()") == "(11, True)\n"
    assert cell(kernel, "base = 20\n[r[0] for r in pool.map(add, range(3))]") == "[20, 21, 22]\n"
    assert cell(kernel, "def add(n):\n    return 'new', n\npool.submit(add, 1).result(60)") == "('new', 1)\n"
    assert (
        cell(kernel, "class Point:\n    def __init__(self, x): self.x = x\npool.submit(lambda p: Point(p.x + 1), Point(1)).result(60).x")
        == "2\n"
    )
    cell(kernel, "def gen(n):\n    yield from range(n)")
    assert cell(kernel, "list(pool.stream(gen, 4))") == "[0, 1, 2, 3]\n"


def test_cells_can_await(kernel: Any) -> None:
    cell(kernel, "import offloop\nwaited = offloop.ProcessPool(1)\ndef inc(n):\n    return n + 1")
    assert cell(kernel, "await waited.run(inc, 1)") == "2\n"
    assert cell(kernel, "[n async for n in waited.amap(inc, range(3))]") == "[1, 2, 3]\n"
    assert cell(kernel, "[n async for n in waited.stream(lambda: iter('ab'))]") == "['a', 'b']\n"
    assert cell(kernel, "async with waited:\n    print(await waited.run(inc, 5))") == "6\n"


def test_an_error_in_a_cells_function_shows_its_own_line(kernel: Any) -> None:
    cell(kernel, "failing = offloop.ProcessPool(1)\ndef bad(n):\n    raise LookupError(n)")
    code = "try:\n    failing.submit(bad, 3).result(60)\nexcept LookupError as e:\n    print(e, 'in bad' in str(e.__cause__))"
    assert cell(kernel, code) == "3 True\n"
