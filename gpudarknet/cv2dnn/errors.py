"""Errors that `except cv2.error` catches, as scripts for OpenCV expect; `except DarknetError` catches them too."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import cv2

from ..errors import DarknetError, DataError

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)


class NetError(DataError, cv2.error):
    """A call that the network cannot answer: an unknown layer, a missing input, a method that it does not have."""


class ArgumentError(NetError, TypeError):
    """An argument is missing or has the wrong type. OpenCV raises cv2.error or TypeError, depending on the method."""


@functools.cache
def opencv_class(kind: type[DarknetError]) -> type[DarknetError]:
    """Return a class with the name of `kind`, an error, that is also a cv2.error. Its instances are pickled as `kind`."""
    reduce = {"__reduce__": lambda self: (kind, self.args), "__module__": kind.__module__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind, cv2.error), reduce)


def opencv_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function raise only errors that are also cv2.error, with OpenCV's attributes code, func, err and msg."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except DarknetError as e:
            if not isinstance(e, cv2.error):
                e.__class__ = opencv_class(type(e))  # type: ignore[arg-type]  # mypy does not see that classes have a hash
            annotate(e, function.__name__)
            raise
        except TypeError as e:
            if e.__traceback__ is None or e.__traceback__.tb_next is not None:
                raise  # from inside the function: a bug
            raise annotate(ArgumentError(str(e)), function.__name__) from None

    return call


def annotate(error: Any, function: str) -> Any:
    """Set the attributes that OpenCV's errors have, unless an inner call has set them."""
    if "func" not in vars(error):
        error.code = -5 if isinstance(error, ArgumentError) else -2  # StsBadArg, StsError
        error.func, error.err, error.msg, error.file, error.line = function, str(error), str(error), "", -1
    return error


def raises_opencv_errors(cls: C) -> C:
    """Apply `opencv_errors` to the constructor and the public methods of a class."""
    for name, value in list(vars(cls).items()):
        public = name == "__init__" or not name.startswith("_")
        if public and callable(value) and not isinstance(value, staticmethod):
            setattr(cls, name, opencv_errors(value))
    return cls
