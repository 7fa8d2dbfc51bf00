"""Find the benchmark suite: a checkout has it in bench/ beside this package; a wheel carries it here, in place of this file."""

from pathlib import Path

__path__ = [str(Path(__file__).parent.parent / "bench")]
