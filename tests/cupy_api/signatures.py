"""Write signatures.json: what CuPy's namespace and arrays have. To run where CuPy is installed; it needs no GPU.

python tests/cupy_api/signatures.py
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("signatures.json")
UFUNC = ["x", "out", "casting", "dtype"]  # cupy.ufunc takes no `where`, no `order`, no `axis`


def parameters(function: Any) -> list[str] | None:
    """Return the names of its parameters, None if Python cannot tell; a Cython method says them in its docstring."""
    try:
        return [p.name if p.kind is not p.VAR_POSITIONAL else "*" + p.name
                for p in inspect.signature(function).parameters.values() if p.name != "self"]  # fmt: skip
    except (TypeError, ValueError):
        first = (function.__doc__ or "").split("\n")[0]
        found = re.match(r"[\w.]+\(self,? ?(.*?)\)(?: ->.*)?$", first)
        return [word.split("=")[0].split()[-1] for word in found[1].split(", ") if word] if found else None


def read(cupy: Any) -> dict[str, Any]:
    """Return the table of a cupy module: functions and constants, members of its arrays, which functions are ufuncs."""
    functions: dict[str, Any] = {}
    for name in dir(cupy):
        value = getattr(cupy, name)
        if name.startswith("_") or inspect.ismodule(value):
            continue
        functions[name] = UFUNC if isinstance(value, cupy.ufunc) else parameters(value) if callable(value) else None
    array = {name: getattr(cupy.ndarray, name) for name in dir(cupy.ndarray)}
    members = {name: parameters(value) if callable(value) else None for name, value in array.items()}
    ufuncs = [name for name in functions if isinstance(getattr(cupy, name), cupy.ufunc)]
    classes = {name: dir(getattr(cupy.cuda, name)) for name in ("Device", "Event", "Graph", "Stream")}
    cuda = {name: [m for m in members if not m.startswith("__")] for name, members in classes.items()}
    return {"version": cupy.__version__, "ufuncs": ufuncs, "functions": functions, "members": members, "cuda": cuda}


if __name__ == "__main__":
    import cupy

    TABLE.write_text(json.dumps(read(cupy), indent=0, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{TABLE.name}: CuPy {cupy.__version__}")
