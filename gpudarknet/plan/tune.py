"""Measured choices."""

from __future__ import annotations


def read_choices() -> dict[str, str]:
    return {}
