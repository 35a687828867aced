"""What is done to a module when it is imported."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self) -> None:
        self.wanted: dict[str, Callable[[ModuleType], None]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        then = self.wanted.pop(fullname, None)
        if then is None:
            return None
        # The others find it: this one is no longer asked for it.
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            self.wanted[fullname] = then
            return None
        spec.loader = _Loader(spec.loader, then)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, inner: importlib.abc.Loader, then: Callable[[ModuleType], None]) -> None:
        self._inner = inner
        self._then = then

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module is as if nobody had looked.
        module.__loader__ = self._inner
        if module.__spec__ is not None:
            module.__spec__.loader = self._inner
        self._inner.exec_module(module)
        self._then(module)


_finder = _Finder()


def after_import(name: str, then: Callable[[ModuleType], None]) -> None:
    """Calls `then` with the module when it has been imported, or now if it was."""
    if name in sys.modules:
        then(sys.modules[name])
        return
    _finder.wanted[name] = then
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
