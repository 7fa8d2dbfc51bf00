"""After the kernels' benchmarks, one table: time, GB/s and the share of a copy, an op and form a line."""

from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    session = getattr(config, "_benchmarksession", None)
    rows = [b for b in getattr(session, "benchmarks", []) if "GB/s" in b.extra_info]
    if not rows:
        return
    terminalreporter.write_line(f"\n{'op':<52}{'form':<18}{'median us':>12}{'GB/s':>9}{'of a copy':>11}")
    for b in sorted(rows, key=lambda b: b.group):
        rate, share = b.extra_info["GB/s"], b.extra_info["of a copy"]
        form = b.params["form"]
        terminalreporter.write_line(f"{b.group:<52}{form:<18}{b.stats.median * 1e6:>12.1f}{rate:>9.2f}{share:>11.0%}")
