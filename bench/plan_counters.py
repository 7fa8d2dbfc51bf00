"""Count what plans on a GPU launch, move and allocate, and model their time, without a GPU: the table of docs/plan.md.

    python -m bench.plan_counters                    (rewrites the table)
    python -m bench.plan_counters yolov4-tiny        (prints its rows)

Nothing is measured: the figures are those of a dry run (gpudarknet/plan/cuda/dry_run.py) and of the time model.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpudarknet.plan import cuda
from gpudarknet.plan.cuda import dry_run
from gpudarknet.plan.cuda.cost_report import total
from gpudarknet.plan.cuda.time_model import find_card
from gpudarknet.plan.tuning import DEFAULT

from . import seeded
from .gpu_check.networks import compile_plan, config, without_weights
from .gpu_report import write_block
from .tables import number

DOCS = Path(__file__).resolve().parent.parent / "docs" / "plan.md"
BEGIN = "<!-- Counters of plans: written by `python -m bench.plan_counters`, not by hand -->"
END = "<!-- end of the counters -->"
NETWORKS = ("yolov2-tiny", "yolov3-tiny", "yolov4-tiny", "yolov2", "yolov3", "yolov4")
BATCHES = (1, 8, 64)
SIZE, PRECISION, CARD = 416, "fp16", find_card("H100 SXM")
PLANS: dict[str, dict[str, str]] = {"cuBLAS": {}, "implicit": {DEFAULT: "implicit_gemm"}}  # -> their choices
HEADS = (
    "network",
    "batch",
    *(f"{what}, {plan}" for what in ("launches", "MB", "arena MiB", "images/s") for plan in PLANS),
)


class Counters(NamedTuple):
    """Of a prediction: its launches, bytes of global memory moved, of the arena, and modelled images per second on CARD."""

    launches: int
    bytes_moved: int
    arena: int
    images_s: float


def count(program: cuda.Program) -> Counters:
    """Return a program's counters: of all launches of a `run` on float32 images, also those outside the graph."""
    sums = total(program.launch_times(CARD))
    assert sums.modelled is not None  # no fallback layers
    arena = program.schedule.arena.size * program.dtype.itemsize
    return Counters(sums.launches, sums.bytes_moved, arena, program.plan.batch / sums.modelled)


def counters(network: str, size: int = SIZE) -> Iterator[tuple[int, list[Counters]]]:
    """Yield the batch sizes of a bundled network, with the counters of each of PLANS."""
    net, packed = without_weights(config(network), dry_run.backend(), size, size), dict[Any, Any]()
    seeded.fill(net)
    for batch in BATCHES:
        plan = compile_plan(net, batch)
        programs = (cuda.Program(plan, net.backend, PRECISION, packed, choices) for choices in PLANS.values())
        yield batch, [count(program) for program in programs]


def table(networks: Iterable[str]) -> str:
    """Return the table in Markdown."""
    rows: list[Sequence[str]] = [HEADS, ["---"] + ["---:"] * (len(HEADS) - 1)]
    for network in networks:
        for batch, plans in counters(network):
            *counted, rates = zip(*plans, strict=True)
            units = zip(counted, (1, 1e6, 1 << 20), strict=True)
            figures = [f"{n / unit:,.0f}" for column, unit in units for n in column]
            rows.append([network, str(batch), *figures, *map(number, rates)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def main(networks: Sequence[str]) -> None:
    """Print the rows of networks; without any, rewrite the table."""
    if networks:
        print(table(networks), end="")
    else:
        write_block(DOCS, BEGIN, END, table(NETWORKS))


if __name__ == "__main__":
    main(sys.argv[1:])
