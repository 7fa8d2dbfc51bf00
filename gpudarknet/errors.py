"""Errors that users can cause. Every message is one line: where, what is wrong, how to fix it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DarknetError(Exception):
    """Base class of all errors caused by the user's input or machine rather than by a bug in this package."""


class CfgError(DarknetError):
    """A .cfg file, or the network it describes, is invalid. Messages start with `file:line:`."""


class WeightsError(DarknetError):
    """A weights file cannot be read, written or downloaded, or does not match its network."""


class BackendError(DarknetError):
    """The requested backend cannot run on this machine."""


class OutOfMemoryError(BackendError, MemoryError):
    """The device is out of memory."""


class ImageError(DarknetError):
    """An image or a video cannot be read or written."""


class DownloadError(DarknetError):
    """A URL cannot be read, or may not be."""


class DataError(DarknetError):
    """A .data, .names, tree, map or label file is invalid."""


class UnusableDataError(DataError):
    """None of the images of a list, or of their labels, can be used; the message names the file with all reasons."""


class NothingMeasuredError(DataError):
    """An evaluation had no readable image, or no truth to compare with."""


class TrainError(DarknetError):
    """Training cannot start or continue: for example, a mismatched checkpoint or non-finite values."""


class BackendWarning(UserWarning):
    """A GPU is present but not used."""


class CfgWarning(UserWarning):
    """A .cfg file contains something without effect, for example a key that no layer reads."""


class WeightsWarning(UserWarning):
    """A .weights file was used only partly, or does not cover the whole network."""


class DataWarning(UserWarning):
    """Part of a data set cannot be used, for example images or labels that are missing."""


class ImageWarning(UserWarning):
    """A damaged image was read, and some of its pixels are missing."""


class TrainWarning(UserWarning):
    """Training continues, but behaves unexpectedly."""


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.7) -> str:
    """Return "; did you mean '...'?" if a known word is similar (by difflib's ratio), else ""."""
    close = difflib.get_close_matches(word, list(known), 1, cutoff)
    return f"; did you mean '{close[0]}'?" if close else ""
