"""The errors a user can cause: each message names the place, the fact and the way out, on one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DarknetError(Exception):
    """Base of every error that is about the user's input or machine, not about this package's code."""


class CfgError(DarknetError):
    """A .cfg file, or the network that it describes, is wrong. Messages begin with `file:line:`."""


class WeightsError(DarknetError):
    """A .weights file does not fit its network."""


class BackendError(DarknetError):
    """The array module that was asked for cannot run here."""


class OutOfMemoryError(BackendError, MemoryError):
    """The memory of the device is full."""


class ImageError(DarknetError):
    """A picture or a video cannot be read or written."""


class DataError(DarknetError):
    """A .data, .names, tree, map or label file is wrong."""


class TrainError(DarknetError):
    """Training cannot begin, or cannot go on: a checkpoint that does not fit, numbers that are not finite."""


class BackendWarning(UserWarning):
    """There is a GPU, but it is not used."""


class CfgWarning(UserWarning):
    """A .cfg file holds something that changes nothing, for example a key that no layer reads."""


class WeightsWarning(UserWarning):
    """A .weights file was used only in part, or filled only part of the network."""


class TrainWarning(UserWarning):
    """Training goes on, but differently from what one would expect."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean '...'?" if a known word resembles this one, else ""."""
    close = difflib.get_close_matches(word, list(known), 1, 0.7)
    return f"; did you mean '{close[0]}'?" if close else ""
