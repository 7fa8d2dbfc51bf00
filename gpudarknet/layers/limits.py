"""The values that cfg keys can have. The cfg parser checks them, and reports file and line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, Literal, NamedTuple


class Limit(NamedTuple):
    """What a number must be, as text and as a test."""

    text: str
    holds: Callable[[float], bool]

    def of(self, *keys: str) -> dict[str, Limit]:
        """Return this limit for each of these keys."""
        return dict.fromkeys(keys, self)


COUNT = Limit("must be at least 1", lambda v: v >= 1)
NOT_NEGATIVE = Limit("must be at least 0", lambda v: v >= 0)
POSITIVE = Limit("must be above 0", lambda v: v > 0)
FRACTION = Limit("must be between 0 and 1", lambda v: 0 <= v <= 1)
BELOW_ONE = Limit("must be at least 0 and below 1", lambda v: 0 <= v < 1)


def between(low: int, high: int) -> Limit:
    """Return the limit low <= value <= high."""
    return Limit(f"must be between {low} and {high}", lambda v: low <= v <= high)


class Diagnostic(NamedTuple):
    """A key whose value cannot be, or is probably unintended.

    severity: "error" if the network cannot run; "training" if it can run but not be trained; "warning" if Darknet works with
    the value.
    """

    key: str
    message: str
    severity: Literal["error", "training", "warning"] = "error"


class Record:
    """The base of the records of sections: `limits` of their keys, `training_limits` of keys that only training uses."""

    limits: ClassVar[Mapping[str, Limit]] = {}
    training_limits: ClassVar[Mapping[str, Limit]] = {}

    def diagnostics(self) -> Iterator[Diagnostic]:
        """Yield what is wrong with the values of its keys; in the order of severity, as only the first error is reported."""
        yield from self.outside("limits", "error")
        yield from self.outside("training_limits", "training")

    def outside(self, table: str, severity: Literal["error", "training"]) -> Iterator[Diagnostic]:
        """Yield the keys outside the limits that its class and base classes declare in `table`."""
        limits: dict[str, Limit] = {}
        for kind in reversed(type(self).__mro__):
            limits |= vars(kind).get(table, {})
        for key, limit in limits.items():
            yield from check(key, getattr(self, key), limit, severity)


def check(
    key: str, value: float, limit: Limit, severity: Literal["error", "training", "warning"] = "error"
) -> Iterator[Diagnostic]:
    """Yield a diagnostic unless the limit holds for the value of a key."""
    if not limit.holds(value):
        yield Diagnostic(key, f"{key}={value:g} {limit.text}", severity)
