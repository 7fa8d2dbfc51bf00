"""`-cluster` of detection commands, which runs them on Ray, and `cluster merge`, which writes the results into one file."""

from __future__ import annotations

import inspect
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from .. import cluster
from ..cluster.runtime import import_ray
from ..detector import MAX_DET
from ..image import is_url
from ..image.formats import SUFFIXES
from ..image_sources import is_single
from ..io import resources
from ..io.remote import is_remote
from . import EXIT_ERROR, eprint, inputs
from .arguments import NOT_NEGATIVE, Arguments, Command, Flag, UsageError
from .outputs import STDOUT

DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(cluster.detect).parameters.items()}
COUNT = (1, math.inf)
MERGE = "`gpudarknet cluster merge FOLDER FILE` writes CSV or COCO's results of a complete job"
INSTEAD = {  # of flags that a job does not have
    "out": MERGE, "csv": MERGE, "coco": MERGE, "crops": MERGE, "table": MERGE, "ext_output": MERGE,
    "save_labels": "-form labels writes label files into -out_dir",
    "i": "Ray gives each worker its GPU; see -gpus_per_worker",
}  # fmt: skip


def run(args: Arguments, cfg: str, weights: str, names: Path, words: Sequence[str]) -> int:
    """Detect objects in images on workers of Ray; print a line at the end."""
    check(args, words)
    import_ray()
    with inputs.private_urls(args), progress(args, words) as job:
        try:
            job.summary = cluster.detect(
                words[0] if len(words) == 1 else words, args.out_dir, resources.bundled_cfg(cfg), inputs.weights_file(weights),
                names, form=args.form, thresh=args.thresh, nms=args.nms, max_det=args.max_det or MAX_DET, tiles=args.tiles,
                letterbox=args.letter_box, precision=args.precision, backend=args.backend, recursive=args.recursive,
                shard=args.shard, batch=args.batch, workers=args.workers, gpus_per_worker=args.gpus_per_worker,
                threads=args.threads, retries=args.retries, on_error=args.on_error, address=args.cluster, report=job.report,
            )  # fmt: skip
        except (KeyboardInterrupt, SystemExit):
            eprint("note", f"stopped after {plural(job.summary.shards, 'shard')}; the same command resumes")
            raise
    print(job.line(), file=sys.stderr)
    return EXIT_ERROR if job.summary.errors else 0


def check(args: Arguments, words: Sequence[str]) -> None:
    """Raise UsageError if flags do not go with -cluster, or something is missing."""
    for name in INSTEAD:
        if name in args.given:
            raise UsageError(f"-{name} and -cluster: exclude each other; {INSTEAD[name]}")
    if not args.out_dir:
        raise UsageError("-cluster: needs -out_dir FOLDER, for the results")
    if not words:
        raise UsageError("-cluster: needs a source, such as a folder of images")


def check_without(args: Arguments) -> None:
    """Raise UsageError if a flag of a job is given without -cluster."""
    for flag in FLAGS:
        if flag.name in args.given:
            raise UsageError(f"-{flag.name}: needs -cluster; `-cluster local` uses this machine")


class Progress:
    """What a job has done so far. total: its images, if known."""

    def __init__(self, total: int | None, show: inputs.ShowProgress):
        self.summary, self.total, self.show = cluster.Summary(), total, show
        self.computed, self.seconds = 0, 0.0  # images of this run, and the time since its workers were started
        show(0, total, "starting Ray")

    def report(self, summary: cluster.Summary) -> None:
        """Note what the job has done after one more shard."""
        if summary.resumed == self.summary.resumed:
            self.computed += summary.images - self.summary.images
        self.summary, self.seconds = summary, summary.seconds
        deaths = f", {plural(summary.deaths, 'death')}" if summary.deaths else ""
        self.show(summary.images, self.total, f"{plural(summary.shards, 'shard')}{self.rate()}{deaths}")

    def rate(self) -> str:
        """Return the images per second of this run, if it computed any."""
        return f", {self.computed / max(self.seconds, 1e-9):.1f} images/s" if self.computed else ""

    def line(self) -> str:
        """Return what is printed at the end."""
        s = self.summary
        errors = f", {plural(s.errors, 'error')} (see the rows)" if s.errors else ""
        resumed = f" ({s.resumed} resumed)" if s.resumed else ""
        deaths = f", {plural(s.deaths, 'worker')} died" if s.deaths else ""
        counts = f"{plural(s.images, 'image')}, {plural(s.objects, 'object')}{errors}"
        return f"{counts}, {plural(s.shards, 'shard')}{resumed} in {s.out}{self.rate()}{deaths}"


@contextmanager
def progress(args: Arguments, words: Sequence[str]) -> Iterator[Progress]:
    """Show a job's progress, if stderr is a terminal; the total only of images that are listed without reading archives."""
    counted = all(
        not is_remote(word) and (is_url(word) or not is_single(word) or Path(word).suffix.lower() in SUFFIXES)
        for word in words
    )
    with inputs.progress_bar() as show:
        total = inputs.Images(args, [], lambda message: None).total(words) if counted else None
        yield Progress(total or None, show)


def plural(count: int, noun: str) -> str:
    """Return a count with its noun."""
    return f"{count} {noun}{'s' * (count != 1)}"


def merge(args: Arguments) -> None:
    """Write the rows of a complete job into one file."""
    found, out = args.positionals
    if out == STDOUT:
        for row in cluster.read(found):
            print(json.dumps(row))
        return
    with inputs.spinner(f"Merging {found}"):
        counts = cluster.merge(found, out)
    errors = f", {plural(counts.errors, 'error')}" if counts.errors else ""
    if errors and Path(out).suffix.lower() in (".csv", ".json"):
        errors += " (not in this format)"
    print(f"{plural(counts.images, 'image')}, {plural(counts.objects, 'object')}{errors} in {out}", file=sys.stderr)


FLAGS = tuple(
    replace(flag, default=DEFAULTS[flag.name], group="Flags of -cluster")
    for flag in (
        Flag("form", str, None, "Files in -out_dir: jsonl, parquet, or labels (label files beside jsonl)"),
        Flag("shard", int, None, "Images per file", limits=COUNT),
        Flag("workers", int, None, "Processes; by default one per GPU, or all cores / -threads", limits=COUNT),
        Flag("threads", int, None, "Threads of each worker", limits=COUNT),
        Flag("gpus_per_worker", float, None, "GPUs of each worker; less than 1 shares one", limits=NOT_NEGATIVE),
        Flag("retries", int, None, "Deaths of workers until the image that kills them is left out", limits=COUNT),
        Flag("on_error", str, None, "record writes a row for an unreadable image, raise ends the job"),
    )
)
CLUSTER = Flag(
    "cluster", str, None,
    "Run on Ray and write a row per image into -out_dir; run again, it resumes. local: this machine; auto: the cluster that it"
    " belongs to; HOST:PORT: another one. Sources may then be tar archives and Parquet files too",
)  # fmt: skip
MORE = (
    "FOUND is the -out_dir of `detector test -cluster`, complete. The suffix of FILE is its format: .csv has a line per object, "
    ".json is COCO's results, .jsonl and .parquet have a row per image; - prints JSON lines"
)
COMMANDS = (
    Command("cluster merge", ("found", "file"), "Write the results of a job on Ray into one file", merge, (), MORE),
)
