"""`detector map`, `valid`, `recall` and `calc_anchors`: evaluate a detector, compute anchors for a data set."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import evaluate, image
from ..data import BadSamples, detection_boxes, read_list, warned
from ..data.check import check_labels, is_box
from ..data.datafile import DataFile
from ..detector import Detector
from ..errors import DataError
from ..evaluate import COCO_IDS, ImageEval, Report, ValidationSet
from ..io import resources
from . import eprint, inputs, outputs
from .arguments import FRACTION, NOT_NEGATIVE, Arguments, Command, Flag, UsageError
from .inputs import progress_bar


def load(args: Arguments) -> tuple[DataFile, Detector, BadSamples]:
    """Load the inputs that these commands share: .data file, detector, record of bad samples."""
    file = inputs.data_file(args.positionals[0])
    with inputs.spinner(f"Loading {args.positionals[2]}"):
        cfg, weights = resources.bundled_cfg(args.positionals[1]), inputs.weights_file(args.positionals[2])
        detector = Detector(cfg, weights, file.names_path(), inputs.get_backend(args), precision=args.precision)
        return file, detector, BadSamples(Path())


@contextmanager
def evaluated(
    detector: Detector, valid: ValidationSet, bad_samples: BadSamples, **options: Any
) -> Iterator[Iterator[ImageEval]]:
    """Yield the results of evaluating the images, with a progress bar; at the end warn of those that cannot be used."""
    with warned(bad_samples), progress_bar() as done:
        images = evaluate.evaluate_images(
            detector, valid.paths, bad_samples=bad_samples, difficult=valid.difficult,
            done=lambda count: done(count, len(valid.paths)), **options,
        )  # fmt: skip
        with evaluate.measured_list(valid.source):
            yield images


def measure(args: Arguments) -> None:
    """Print Darknet's mAP report, and COCO's if faster-coco-eval is installed."""
    evaluate.check_options(args.iou_thresh, args.points, args.thresh)
    file, detector, bad_samples = load(args)
    valid_images = evaluate.validation_set(file, detector, bad_samples)
    with evaluated(detector, valid_images, bad_samples) as results:
        images = list(results)
        report = evaluate.mean_average_precision(images, len(detector.names), args.iou_thresh, args.points, args.thresh)
    scores: dict[str, float] = {}
    class_ap: Sequence[float] | None = None
    try:
        scores, per_class = evaluate.coco(images, detector.names)
        class_ap = per_class.tolist()
    except DataError as e:
        eprint("warning", str(e))
    for text in lines(report, detector.names, class_ap):
        print(text)
    for name, value in scores.items():
        print(f" COCO {name} = {100 * value:.2f} %" if value == value else f" COCO {name}: no objects of this size")


def lines(report: Report, names: Sequence[str], coco_ap: Sequence[float] | None) -> Iterator[str]:
    """Yield the lines of Darknet's report, with COCO's AP per class if it is known."""
    yield f" detections_count = {report.detection_count}, unique_truth_count = {report.truths.sum()}"
    for k, name in enumerate(names):
        counts = f"(TP = {report.tp[k]}, FP = {report.fp[k]})"
        coco = f"   COCO AP = {100 * coco_ap[k]:.2f}%" if coco_ap is not None and coco_ap[k] == coco_ap[k] else ""
        yield f"class_id = {k}, name = {name}, ap = {100 * report.ap[k]:.2f}%   \t {counts}{coco}"
    conf, fn = report.conf_thresh, int(report.truths.sum() - report.tp.sum())
    rates = f"precision = {report.precision:.2f}, recall = {report.recall:.2f}, F1-score = {report.f1:.2f}"
    yield f" for conf_thresh = {conf:.2f}, {rates}"
    yield (
        f" for conf_thresh = {conf:.2f}, TP = {report.tp.sum()}, FP = {report.fp.sum()}, FN = {fn},"
        f" average IoU = {100 * report.average_iou:.2f} %"
    )
    method = f"used {report.points} Recall-points" if report.points else "used Area-Under-Curve for each unique Recall"
    yield f" IoU threshold = {100 * report.iou_thresh:.0f} %, {method}"
    yield f" mean average precision (mAP@{report.iou_thresh:.2f}) = {report.mean:f}, or {100 * report.mean:.2f} %"
    if report.absent:
        yield absent_classes(report, names)


def absent_classes(report: Report, names: Sequence[str]) -> str:
    """Return a line about the classes that no label has, "" if there are none."""
    if not report.absent:
        return ""
    listed = ", ".join(names[k] for k in report.absent[:5]) + (", ..." if len(report.absent) > 5 else "")
    present = report.mean_of_present
    return (
        f" {len(report.absent)} of {len(names)} classes have no object and count as 0 in the mean: {listed};"
        f" mAP of the others = {present:f}, or {100 * present:.2f} %"
    )


def valid(args: Arguments) -> None:
    """Write the detections in the images of `valid`: one VOC file per class, or COCO's JSON for eval=coco."""
    file, detector, bad_samples = load(args)
    folder, coco = outputs.writable_folder(file.results), file.eval == "coco"
    if coco and len(detector.names) > len(COCO_IDS):
        raise DataError(f"{file.path}: eval=coco needs COCO's 80 classes, got {len(detector.names)}")
    valid_images = evaluate.validation_set(file, detector, bad_samples, labels=False)
    if coco:
        warn_of_coco_ids(file, valid_images.paths)
    entries: list[dict[str, Any]] = []
    voc: list[list[str]] = [[] for _ in detector.names]
    with evaluated(detector, valid_images, bad_samples, thresh=args.thresh, nms=0.6, labels=False) as results:
        for img in results:
            collect(img, entries if coco else voc, coco)
    if coco:
        write(folder / f"{args.out or 'coco_results'}.json", json.dumps(entries, separators=(",", ":")) + "\n")
        return
    for name, rows in zip(outputs.file_names(detector.names), voc, strict=True):
        write(folder / f"{args.out or 'comp4_det_test_'}{name}.txt", "".join(row + "\n" for row in rows))


def warn_of_coco_ids(file: DataFile, paths: Sequence[str]) -> None:
    """Warn of images whose names have no number to be their image_id."""
    without = [path for path in paths if evaluate.coco_image_id(path) is None]
    if without:
        eprint(
            "warning",
            f"{file.path}: eval=coco: {len(without)} of {len(paths)} image names do not end in a number and get image_id 0,"
            f" first {without[0]}",
        )


def collect(img: ImageEval, into: list[Any], coco: bool) -> None:
    """Add an image's results."""
    if coco:
        into += evaluate.coco_results(img, COCO_IDS)
        return
    for k, rows in enumerate(into):
        rows += evaluate.voc_lines(img, k)


def write(path: Path, text: str) -> None:
    """Write a result file and print its path."""
    outputs.write(path, text)
    print(path)


def recall(args: Arguments) -> None:
    """Print the recall of the predicted boxes, ignoring classes."""
    file, detector, bad_samples = load(args)
    valid_images = evaluate.validation_set(replace(file, difficult=None), detector, bad_samples)
    options = dict(thresh=evaluate.PROPOSAL_THRESH, nms=evaluate.PROPOSAL_NMS, class_agnostic=True)
    with evaluated(detector, valid_images, bad_samples, **options) as results:
        result = evaluate.recall(results, args.iou_thresh)
    print(f"images: {result.images}, proposals per image: {result.proposals:.2f}")
    print(f"average IoU: {100 * result.average_iou:.2f} %, recall: {100 * result.recall:.2f} %")


def calc_anchors(args: Arguments) -> None:
    """Compute anchors for the boxes of `train`; write anchors.txt and counters_per_class.txt."""
    if args.width < 1 or args.height < 1:
        raise UsageError(
            "detector calc_anchors: set -width and -height to the cfg's input size, such as -width 416 -height 416"
        )
    file, bad_samples = inputs.data_file(args.positionals[0]), BadSamples(Path())
    paths, classes = read_list(file.find("train")), file.class_count()
    check_labels(paths, detection_boxes(classes), bad_samples, f"{file.path}: `train`", is_box(), classes)
    with warned(bad_samples):
        truths = evaluate.read_truths(paths, classes, bad_samples)
        result = evaluate.calc_anchors(
            truths, args.num_of_clusters, args.width, args.height, args.seed, classes=classes
        )
    anchors = evaluate.anchors_text(result.sizes, args.width)
    counters = ", ".join(str(n) for n in result.counters.tolist())
    print(f" {len(truths)} boxes, average IoU = {100 * result.average_iou:.2f} %")
    print(f"anchors = {anchors}")
    print(f"counters_per_class = {counters}")
    write(Path("anchors.txt"), anchors + "\n")
    write(Path("counters_per_class.txt"), f"counters_per_class = {counters}\n")
    if args.show:
        image.write("anchors.png", evaluate.draw_anchors(truths, result, args.width, args.height))
        print("anchors.png")


POSITIONALS = ("x.data", "x.cfg", "x.weights")
COMMON = (
    inputs.BACKEND,
    inputs.PRECISION,
    inputs.GPU,
)
IOU = Flag("iou_thresh", float, 0.5, "A box is correct if its IoU with an object is greater than this", limits=FRACTION)
COMMANDS = (
    Command(
        "detector map", POSITIONALS, "Measure mean average precision on the images of `valid`", measure,
        (
            IOU,
            Flag("thresh", float, 0.25, "Count true and false positives above this confidence", limits=FRACTION),
            Flag("points", int, 0, "Recall points: 0 for the area under the curve, 11 (VOC 2007), 101 (COCO)"),
            *COMMON,
        ),
        "Prints Darknet's report, and COCO's metrics if faster-coco-eval is installed",
    ),
    Command(
        "detector valid", POSITIONALS, "Write the detections in the images of `valid` to result files", valid,
        (
            Flag("thresh", float, 0.001, "Minimum confidence (exclusive)", limits=FRACTION),
            Flag("out", str, None, "Prefix of the file names instead of comp4_det_test_ or coco_results"),
            *COMMON,
        ),
        "Files are written to the .data file's results folder: COCO's JSON for eval=coco, else one VOC file per class",
    ),
    Command("detector recall", POSITIONALS, "Measure recall on the images of `valid`, ignoring classes", recall, (IOU, *COMMON)),
    Command(
        "detector calc_anchors", ("x.data",), "Compute anchors for the boxes of `train`", calc_anchors,
        (
            Flag("num_of_clusters", int, 5, "Number of anchors"),
            Flag("width", int, 0, "Width of the network's input in pixels"),
            Flag("height", int, 0, "Height of the network's input in pixels"),
            Flag("seed", int, 0, "Random seed; the same seed gives the same anchors", limits=NOT_NEGATIVE),
            Flag("show", bool, False, "Also draw anchors.png"),
        ),
        "Writes anchors.txt and counters_per_class.txt",
    ),
)  # fmt: skip
