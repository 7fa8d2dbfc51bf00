"""`detector test` and `detect`: detect objects in images."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from .. import tiles
from ..detector import MAX_DET, Detector
from ..errors import ImageError
from ..image_sources import is_single
from ..inference import ImageSource
from ..io import resources
from . import EXIT_ERROR, cluster, eprint, inputs, results
from .arguments import FRACTION, Arguments, Command, Flag


def test(args: Arguments) -> int:
    """Detect objects, with the class names of a .data file."""
    data, cfg, weights, *words = args.positionals
    names = inputs.data_file(data).names_path()
    return run(args, cfg, weights, names, words)


def detect(args: Arguments) -> int:
    """Detect objects, with COCO's class names."""
    cfg, weights, *words = args.positionals
    names = inputs.data_file("coco").names_path()
    return run(args, cfg, weights, names, words)


def run(args: Arguments, cfg: str, weights: str, names: Path, words: Sequence[str]) -> int:
    """Detect objects in each image and write the requested results, also if it is interrupted. Unreadable images are skipped.

    If no image can be read, nothing is written. With -cluster, see `cluster.run`.
    """
    if args.cluster:
        return cluster.run(args, cfg, weights, names, words)
    cluster.check_without(args)
    summary = RunSummary(are_several(words))
    with suppress(NothingReadError), inputs.private_urls(args), ExitStack() as stack:
        be = inputs.get_backend(args)
        writers = results.requested(args, stack, be.reader_threads(), summary.several, summary.fail)
        file = inputs.weights_file(weights)
        with inputs.spinner(f"Loading {weights}"):
            detector = Detector(resources.bundled_cfg(cfg), file, names, be, args.letter_box, precision=args.precision)
        images = inputs.Images(args, [args.out_dir, args.crops], summary.fail)
        try:
            if words:
                process(detector, images, words, args, writers, summary)
            else:
                for line in inputs.prompt(sys.stderr if results.uses_stdout(args) else sys.stdout):
                    process(detector, images, [line], args, writers, summary)
        except (KeyboardInterrupt, SystemExit, BrokenPipeError) as e:  # the last: whoever reads the output has enough
            summary.interruption = e
        if not summary.images:
            raise NothingReadError
        summary.replaced = sum(writer.replaced for writer in writers)
    summary.report()
    if summary.interruption:
        raise summary.interruption
    return EXIT_ERROR if summary.errors else 0


def are_several(words: Sequence[str]) -> bool:
    """Return whether words of a command line may name more than one image."""
    return len(words) > 1 or any(not is_single(word) for word in words)


class NothingReadError(Exception):
    """No image could be read; each has been reported."""


class RunSummary:
    """The numbers of images and errors of a run, which are reported at its end. several: it may have more than one image."""

    def __init__(self, several: bool):
        self.several = several
        self.images = self.errors = self.replaced = 0
        self.engine = ""  # what computed the boxes
        self.begin = time.perf_counter()
        self.interruption: BaseException | None = None

    def fail(self, message: str) -> None:
        """Report what is wrong with one image or source."""
        self.errors += 1
        eprint("error", message)

    def fail_image(self, source: ImageSource, error: ImageError) -> None:
        """Report an unreadable image."""
        self.fail(str(error))

    def report(self) -> None:
        """Print the number of images, of several, and how many files of an earlier run were replaced."""
        if self.several and (self.images or self.errors > 1):
            rate = self.images / max(time.perf_counter() - self.begin, 1e-9)
            errors = f", {self.errors} error{'s' * (self.errors != 1)}" if self.errors else ""
            engine = f" ({self.engine})" if self.engine else ""
            print(
                f"{self.images} image{'s' * (self.images != 1)}, {rate:.1f} images/s{engine}{errors}", file=sys.stderr
            )
        if self.replaced:
            eprint("note", f"files replaced: {self.replaced}")


def process(
    detector: Detector, images: inputs.Images, words: Sequence[str], args: Arguments, writers: Sequence[results.ResultWriter],
    summary: RunSummary,
) -> None:  # fmt: skip
    """Detect objects in the images that words name, and hand the results to the writers."""
    with inputs.progress_bar(shown=summary.several) as done:
        total = images.total(words) if summary.several else None
        summary.begin = time.perf_counter()
        sources, thresh, nms, fail = images.expand(words), args.thresh, args.nms, summary.fail_image
        if args.tiles:
            found = tiles.run_images(detector, sources, thresh, nms, on_error=fail)
        else:
            found = detector.run_images(sources, thresh, nms, args.batch, on_error=fail)
        for path, img, scored in found:
            objects = detector.to_detections(scored, args.max_det, path)
            shown = objects[: args.max_det or MAX_DET]
            result = results.DetectedImage(path, img, scored.most_confident(args.max_det), objects, shown)
            for writer in writers:
                writer.add(result)
            summary.images += 1
            summary.engine = detector.network.engine
            done(summary.images + summary.errors, total)


def flags(thresh: float) -> tuple[Flag, ...]:
    """Return the flags of these commands, which differ only in the default threshold."""
    return (
        Flag("thresh", float, thresh, "Minimum confidence (exclusive), 0 to 1", limits=FRACTION),
        inputs.NMS,
        Flag("ext_output", bool, False, "Print coordinates in pixels"),
        *results.FLAGS,
        *inputs.SOURCES,
        Flag(
            "batch", int, 8, "Images that the network processes at a time; without effect on -tiles", limits=(1, 1024)
        ),
        Flag(
            "tiles",
            bool,
            False,
            "Also process the image in tiles of the network's input size, to find small objects",
        ),
        Flag("letter_box", bool, False, "Keep the image's aspect ratio instead of stretching it"),
        inputs.BACKEND,
        inputs.PRECISION,
        inputs.GPU,
        cluster.CLUSTER,
        *cluster.FLAGS,
    )


MORE = (
    f"Prints the detections as Darknet does. {inputs.SOURCES_HELP}. One image is drawn in {results.PREDICTIONS}; -out_dir draws "
    "each. Ctrl-C ends the run and keeps its results"
)
COMMANDS = (
    Command(
        "detector test", ("x.data", "x.cfg", "x.weights", inputs.SOURCE),
        "Detect objects in images", test, flags(0.25), MORE,
    ),
    Command(
        "detect", ("x.cfg", "x.weights", inputs.SOURCE),
        "Detect objects of COCO's 80 classes in images", detect, flags(0.24), MORE,
    ),
)  # fmt: skip
