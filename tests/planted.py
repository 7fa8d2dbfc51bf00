"""Plant a bug into a module of the package, to see that a test detects it."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest


def plant(monkeypatch: pytest.MonkeyPatch, module: ModuleType, right: str, wrong: str) -> None:
    """Replace a piece of a module's text, which must be there once, in the functions that are defined there."""
    assert module.__file__ is not None
    text = Path(module.__file__).read_text(encoding="utf-8")
    assert text.count(right) == 1, f"{module.__name__} has {text.count(right)} times: {right}"
    changed: dict[str, Any] = dict(vars(module))
    exec(compile(text.replace(right, wrong), module.__file__, "exec"), changed)
    original, changed_functions = functions(vars(module), module.__name__), functions(changed, module.__name__)
    planted = [name for name in original if original[name].__code__ != changed_functions[name].__code__]
    assert planted, f"{module.__name__}: {right} is in no function"
    for name in planted:
        monkeypatch.setattr(original[name], "__code__", changed_functions[name].__code__)


def functions(namespace: dict[str, Any], module: str) -> dict[str, FunctionType]:
    """Return the functions and methods that a module defines, by qualified name."""
    defined: dict[str, FunctionType] = {}
    for value in list(namespace.values()):
        value = inspect.unwrap(value) if callable(value) else value
        if getattr(value, "__module__", None) != module:
            continue
        if isinstance(value, FunctionType):
            defined[value.__qualname__] = value
        elif isinstance(value, type):
            members = (inspect.unwrap(m) for m in vars(value).values() if callable(m))
            defined |= {m.__qualname__: m for m in members if isinstance(m, FunctionType)}
    return defined
