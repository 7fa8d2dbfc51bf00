"""Locate the benchmark suite: bench/ next to this package in a checkout; in a wheel, it replaces this file."""

from pathlib import Path

__path__ = [str(Path(__file__).parent.parent / "bench")]
