"""Arguments as OpenCV's bindings take them: None stands for the default, and the first form of a call that fits is used."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .errors import ArgumentError

REQUIRED = object()
Convert = Callable[[Any], Any]
Form = Mapping[str, tuple[Convert, Any]]  # argument -> how to convert it, and its default or REQUIRED


def resolve(method: str, args: Sequence[Any], kwargs: Mapping[str, Any], *forms: Form) -> tuple[int, dict[str, Any]]:
    """Return the number of the first form that the arguments fit, and its values. Raises ArgumentError with all reasons."""
    reasons = []
    for number, form in enumerate(forms):
        try:
            return number, bind(args, kwargs, form)
        except ArgumentError as e:
            reasons.append(str(e))
    raise ArgumentError(f"{method}: {'; or '.join(dict.fromkeys(reasons))}")


def bind(args: Sequence[Any], kwargs: Mapping[str, Any], form: Form) -> dict[str, Any]:
    """Return the values of a form's arguments."""
    if len(args) > len(form):
        raise ArgumentError(f"takes at most {len(form)} arguments, {len(args)} were given")
    given = dict(zip(form, args, strict=False))
    for name, value in kwargs.items():
        if name not in form or name in given:
            raise ArgumentError(f"has no argument '{name}'" if name not in form else f"has '{name}' twice")
        given[name] = value
    values = {}
    for name, (convert, default) in form.items():
        if name not in given and default is REQUIRED:
            raise ArgumentError(f"needs the argument '{name}'")
        if given.get(name) is None and default is not REQUIRED:
            values[name] = default
        else:
            try:
                values[name] = convert(given[name])
            except ArgumentError as e:
                raise ArgumentError(f"{name} {e}") from None
    return values


def text(value: Any) -> str:
    """Convert a name or a path, up to its first NUL, as OpenCV does."""
    if value is None:
        return ""
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise ArgumentError(f"must be a string or a path, not {kind(value)}")
    return os.fsdecode(value).partition("\0")[0]


def texts(value: Any) -> tuple[str, ...]:
    """Convert a list of names. A single name is a list of its letters, as in OpenCV; no layer has such a name."""
    if value is None:
        return ()
    return tuple(text(item) for item in (value if isinstance(value, str) else items(value)))


def integer(value: Any) -> int:
    """Convert an integer; NumPy's are fine, floats and arrays are not."""
    if value is None:
        return 0
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise ArgumentError(f"must be an integer, not {kind(value)}")
    if not -(2**31) <= value < 2**31:
        raise ArgumentError(f"must be an integer of 32 bits, not {value}")
    return int(value)


def number(value: Any) -> float:
    """Convert a number."""
    if value is None:
        return 0.0
    if not isinstance(value, (int, float, np.integer, np.floating)):
        raise ArgumentError(f"must be a number, not {kind(value)}")
    return float(value)


def flag(value: Any) -> bool:
    """Convert a bool; integers are fine."""
    if value is not None and not isinstance(value, (int, np.bool_, np.integer)):
        raise ArgumentError(f"must be a bool, not {kind(value)}")
    return bool(value)


def size(value: Any) -> tuple[int, int]:
    """Convert a size: (width, height)."""
    if value is None:
        return 0, 0
    width, height = items(value, 2)
    return integer(width), integer(height)


def scalar(value: Any) -> tuple[float, float, float, float]:
    """Convert OpenCV's Scalar, one value per channel: up to four numbers, the others are 0; a number is the first of them."""
    values = [] if value is None else [value] if np.ndim(value) == 0 else list(value)
    if len(values) > 4:
        raise ArgumentError(f"must have at most 4 numbers, not {len(values)}")
    a, b, c, d = [*map(number, values), *[0.0] * (4 - len(values))]
    return a, b, c, d


def shape(value: Any) -> tuple[int, ...]:
    """Convert the shape of a blob."""
    return tuple(integer(item) for item in items(value))


def shapes(value: Any) -> list[tuple[int, ...]]:
    """Convert a list of shapes, one per input."""
    return [shape(item) for item in items(value)]


def blobs(value: Any) -> list[Any]:
    """Convert a list of output arrays."""
    found = list(items(value))
    for item in found:
        if isinstance(item, (str, bytes)):
            raise ArgumentError("must be a list of arrays, not of strings")
    return found


def items(value: Any, length: int | None = None) -> Sequence[Any]:
    """Return the items of a sequence, checking its length."""
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__getitem__") or getattr(value, "ndim", 1) == 0:
        raise ArgumentError(f"must be a sequence, not {kind(value)}")
    if length is not None and len(value) != length:
        raise ArgumentError(f"must have {length} items, not {len(value)}")
    return list(value)


def array(value: Any) -> np.ndarray:
    """Copy an array, a cv2.UMat or a number as float32."""
    value = to_array(value)
    if value is None:
        return np.empty(0, np.float32)
    if not isinstance(value, (np.ndarray, np.generic, int, float)) or np.asarray(value).dtype.kind not in "iuf":
        raise ArgumentError(f"must be an array of numbers, not {kind(value)}")
    return np.array(value, np.float32)


def to_array(value: Any) -> Any:
    """Return the array of a cv2.UMat; any other value as it is."""
    return value.get() if type(value).__name__ == "UMat" else value


def kind(value: Any) -> str:
    """Return what messages call a value: its type, and dtype."""
    return f"{type(value).__name__} of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
