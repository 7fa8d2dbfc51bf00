"""Print a table after the kernel benchmarks: time, GB/s and GB/s relative to a copy, for each op and variant."""

from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    """Print the table."""
    session = getattr(config, "_benchmarksession", None)
    rows = [b for b in getattr(session, "benchmarks", []) if "GB/s" in b.extra_info]
    if not rows:
        return
    terminalreporter.write_line(f"\n{'op':<52}{'variant':<18}{'median us':>12}{'GB/s':>9}{'of a copy':>11}")
    for b in sorted(rows, key=lambda b: b.group):
        rate, relative = b.extra_info["GB/s"], b.extra_info["of a copy"]
        variant = b.params["variant"]
        terminalreporter.write_line(
            f"{b.group:<52}{variant:<18}{b.stats.median * 1e6:>12.1f}{rate:>9.2f}{relative:>11.0%}"
        )
