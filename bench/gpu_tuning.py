"""Write the tuning file of a GPU that ships in cfg/tuning/, from the results of its GPU check.

    python -m bench.gpu_tuning bench/results/*gpu-check-*.jsonl
    python -m bench.gpu_tuning --layers bench/results/*gpu-check-*.jsonl       (prints the algorithms of each convolution)

"default" is the implicit GEMM in a precision if its plans were faster than those of the rule in every workload measured.
`gpudarknet/plan/tuning.py` describes the file.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpudarknet.errors import DataError
from gpudarknet.io import resources
from gpudarknet.io.atomic import atomic_write
from gpudarknet.plan.cuda import autotune
from gpudarknet.plan.cuda.algorithms import ALGORITHMS
from gpudarknet.plan.cuda.time_model import card_of_device
from gpudarknet.plan.tuning import DEFAULT, KERNELS, SHIPPED

from .gpu_report import RERUN, Device, read
from .tables import number

IMPLICIT = "implicit_gemm"
OURS = {name for name, one in ALGORITHMS.items() if one.weight_layout in ("implicit_gemm", "image_gemm")}


class Comparison(NamedTuple):
    """Images per second of a workload's graph: with implicit GEMMs, and with the algorithms of the rule."""

    workload: str
    tuned_for: str
    implicit: float
    rule: float


def comparisons(device: Device) -> Iterator[Comparison]:
    """Yield the workloads that were measured with both."""
    for case, row in device.rows.items():
        if row.get("outcome") == "passed" and "tuned_for" in row:
            if row.get("engine") == "implicit-gemm":
                yield Comparison(case, row["tuned_for"], row["graph_images_s"], row["default_graph_images_s"])
            elif "choices" in row:
                rates = (row[kind]["graph_images_s"] for kind in ("implicit-gemm", "heuristic"))
                yield Comparison(case, row["tuned_for"], *rates)


def tuning(device: Device) -> dict[str, dict[str, str]]:
    """Return the content of a device's tuning file. Raises DataError if its results do not apply to the present kernels."""
    compared = list(comparisons(device))
    present = autotune.conditions("", "")
    if not compared:
        raise DataError(f"{device.name}: has no plans of implicit GEMMs; {RERUN}")
    if any(KERNELS.findall(one.tuned_for) != KERNELS.findall(present) for one in compared):
        raise DataError(f"{device.name}: measured with other kernels than those of this checkout; {RERUN}")
    names: dict[str, dict[str, str]] = {}
    for of in sorted({one.tuned_for for one in compared}):
        faster = all(one.implicit > one.rule for one in compared if one.tuned_for == of)
        names[of] = {DEFAULT: IMPLICIT} if faster else {}
    for row in device.rows.values():
        if row.get("outcome") == "passed" and "choices" in row:
            names[row["tuned_for"]] |= choices(row, DEFAULT in names[row["tuned_for"]])
    return {of: own for of, own in names.items() if own}


def choices(row: dict[str, Any], by_default: bool) -> dict[str, str]:
    """Return the algorithms of a workload's convolutions. by_default: others than implicit GEMMs must be clearly faster.

    If the rule's are the default, and the plan of the choices was not faster than its plan, there are none.
    """
    if not by_default:
        faster = row["autotuned"]["graph_images_s"] > row["heuristic"]["graph_images_s"]
        return dict(row["choices"]) if faster else {}
    picked = {}
    for key, times in row["microseconds"].items():
        ours = min(OURS & times.keys(), key=times.__getitem__, default="")
        picked[key] = autotune.pick(times, ours)
    return picked


LAYER_HEADS = (
    "convolution",
    "library",
    "us",
    "modelled",
    "implicit GEMM",
    "us",
    "modelled",
    "by the model",
    "us",
    "modelled",
)


def layers(row: dict[str, Any]) -> str:
    """Return a workload's convolutions in Markdown: the library's and our fastest algorithm, and ours by the model.

    The library's algorithms include our kernels around its gemms. Times are measured, and modelled if the card is known.
    """
    rows: list[Sequence[str]] = [LAYER_HEADS, ["---"] * len(LAYER_HEADS)]
    for key, times in row["microseconds"].items():
        modelled, cells = row["modelled_us"][key], [key]
        ours = OURS & times.keys()
        by_model = min(ours, key=modelled.__getitem__, default="") if row["card"] else ""
        fastest = (min(names, key=times.__getitem__, default="") for names in (times.keys() - ours, ours))
        for name in (*fastest, by_model):
            cells += [name or "–", number(times.get(name)), number(modelled.get(name))]
        rows.append(cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def path_of(device: Device, folder: Path) -> Path:
    """Return the path of a device's file."""
    card = card_of_device(device.name)
    return folder / f"{'-'.join(re.findall(r'[a-z0-9]+', (card.name if card else device.name).lower()))}.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Write a file for each GPU; print what decided."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_tuning", description=__doc__.split("\n")[0])
    parser.add_argument("results", nargs="+", type=Path, help="files written by `make gpu-check`, of both parts")
    parser.add_argument("--out", type=Path, default=resources.folder() / SHIPPED, help="folder for the file")
    parser.add_argument("--layers", action="store_true", help="print the algorithms of each convolution; write nothing")
    args = parser.parse_args(argv)
    try:
        for device in read(args.results):
            if args.layers:
                tables = [f"{case}\n\n{layers(row)}" for case, row in device.rows.items() if "modelled_us" in row]
                print(f"{device.name}\n", *tables, sep="\n")
                continue
            content, path = tuning(device), path_of(device, args.out)
            for one in comparisons(device):
                print(f"{one.workload}: implicit GEMM {one.implicit:,.0f} images/s, rule {one.rule:,.0f}")
            if not content:
                print(f"{device.name}: the rule's algorithms were the fastest; there is nothing to ship")
                continue
            with atomic_write(path) as tmp:
                tmp.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            for of, names in content.items():
                print(f"{of}: default {names.get(DEFAULT, 'by rule')}, {len(names.keys() - {DEFAULT})} convolutions")
            print(f"wrote {path}")
    except DataError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
