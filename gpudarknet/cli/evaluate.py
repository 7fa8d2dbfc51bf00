"""`detector map`, `valid`, `recall` and `calc_anchors`: evaluate a detector, compute anchors for a data set."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import evaluate, image
from ..data import BadSamples, read_list
from ..data.datafile import DataFile, label_path
from ..detector import Detector
from ..errors import DataError
from ..evaluate import ImageEval, Report
from ..io import resources
from . import eprint, inputs
from .arguments import Arguments, Command, Flag, UsageError
from .inputs import progress_bar
from .outputs import write as write_text

# category_id of COCO's 80 classes, which are not consecutive
COCO_IDS = [n for n in range(1, 91) if n not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def load(args: Arguments) -> tuple[DataFile, Detector, list[str], BadSamples]:
    """Load the inputs that these commands share: .data file, detector, image paths of `valid`, record of bad samples."""
    file = inputs.data_file(args.positionals[0])
    with inputs.spinner(f"Loading {args.positionals[2]}"):
        cfg, weights = resources.bundled_cfg(args.positionals[1]), inputs.weights_file(args.positionals[2])
        detector = Detector(cfg, weights, file.names_path(), inputs.get_backend(args))
    file.check_names(detector.head.num_labels, detector.network.config.path)
    return file, detector, read_list(file.find("valid")), BadSamples(Path())


def measure(args: Arguments) -> None:
    """Print Darknet's mAP report, and COCO's if faster-coco-eval is installed."""
    file, detector, paths, bad_samples = load(args)
    difficult = read_difficult(file)
    with progress_bar(len(paths)) as done:
        images = list(
            evaluate.evaluate_images(detector, paths, bad_samples=bad_samples, difficult=difficult, done=done)
        )
    classes = len(detector.names)
    report = evaluate.mean_average_precision(images, classes, args.iou_thresh, args.points, args.thresh)
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
    inputs.warn_bad_samples(bad_samples)


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


def read_difficult(file: DataFile) -> Callable[[str], str] | None:
    """Return a function image -> label file of its difficult boxes, if the .data file has the key `difficult`."""
    if not file.difficult:
        return None
    known = {Path(path).stem: path for path in read_list(file.find("difficult"))}
    return lambda path: str(label_path(known.get(Path(path).stem, "")))


def valid(args: Arguments) -> None:
    """Write the detections in the images of `valid`: one VOC file per class, or COCO's JSON for eval=coco."""
    file, detector, paths, bad_samples = load(args)
    folder, coco = Path(file.results), file.eval == "coco"
    if coco and len(detector.names) > len(COCO_IDS):
        raise DataError(f"{file.path}: eval=coco needs COCO's 80 classes, got {len(detector.names)}")
    entries: list[dict[str, Any]] = []
    voc: list[list[str]] = [[] for _ in detector.names]
    with progress_bar(len(paths)) as done:
        for img in evaluate.evaluate_images(detector, paths, args.thresh, 0.6, bad_samples, done=done):
            collect(img, entries if coco else voc, coco)
    inputs.warn_bad_samples(bad_samples)
    folder.mkdir(parents=True, exist_ok=True)
    if coco:
        write(folder / f"{args.out or 'coco_results'}.json", json.dumps(entries, separators=(",", ":")) + "\n")
        return
    for name, rows in zip(detector.names, voc, strict=True):
        write(folder / f"{args.out or 'comp4_det_test_'}{name}.txt", "".join(row + "\n" for row in rows))


def collect(img: ImageEval, into: list[Any], coco: bool) -> None:
    """Add an image's results."""
    if coco:
        into += evaluate.coco_results(img, COCO_IDS)
        return
    for k, rows in enumerate(into):
        rows += evaluate.voc_lines(img, k)


def write(path: Path, text: str) -> None:
    """Write a result file and print its path."""
    write_text(path, text)
    print(path)


def recall(args: Arguments) -> None:
    """Print the recall of the predicted boxes, ignoring classes."""
    _, detector, paths, bad_samples = load(args)
    with progress_bar(len(paths)) as done:
        settings = evaluate.PROPOSAL_THRESH, evaluate.PROPOSAL_NMS, bad_samples
        images = evaluate.evaluate_images(detector, paths, *settings, done=done, class_agnostic=True)
        result = evaluate.recall(images, args.iou_thresh)
    inputs.warn_bad_samples(bad_samples)
    print(f"images: {len(paths)}, proposals per image: {result.proposals:.2f}")
    print(f"average IoU: {100 * result.average_iou:.2f} %, recall: {100 * result.recall:.2f} %")


def calc_anchors(args: Arguments) -> None:
    """Compute anchors for the boxes of `train`; write anchors.txt and counters_per_class.txt."""
    if args.width < 1 or args.height < 1:
        raise UsageError(
            "detector calc_anchors: set -width and -height to the cfg's input size, such as -width 416 -height 416"
        )
    file = inputs.data_file(args.positionals[0])
    bad_samples = BadSamples(Path())
    truths = evaluate.read_truths(read_list(file.find("train")), file.classes, bad_samples)
    inputs.warn_bad_samples(bad_samples)
    result = evaluate.calc_anchors(truths, args.num_of_clusters, args.width, args.height, args.seed)
    pair = "{:.4f},{:.4f}" if args.width <= 32 else "{:3.0f},{:3.0f}"
    anchors = ", ".join(pair.format(w, h) for w, h in result.sizes.tolist())
    print(f" {len(truths)} boxes, average IoU = {100 * result.average_iou:.2f} %")
    print(f"anchors = {anchors}")
    write(Path("anchors.txt"), anchors + "\n")
    counters = ", ".join(str(n) for n in result.counters.tolist())
    write(Path("counters_per_class.txt"), f"counters_per_class = {counters}\n")
    if args.show:
        image.write("anchors.png", evaluate.draw_anchors(truths, result, args.width, args.height))
        print("anchors.png")


POSITIONALS = ("x.data", "x.cfg", "x.weights")
COMMON = (
    inputs.BACKEND,
    inputs.GPU,
    Flag("letter_box", bool, False, "Accepted; letter_box in [net] decides, as in Darknet"),
    Flag("dont_show", bool, False, "Accepted; no window is opened"),
)
IOU = Flag("iou_thresh", float, 0.5, "A box is correct if its IoU with an object is greater than this")
COMMANDS = (
    Command(
        "detector map", POSITIONALS, "Measure mean average precision on the images of `valid`", measure,
        (
            IOU,
            Flag("thresh", float, 0.25, "Count true and false positives above this confidence"),
            Flag("points", int, 0, "Recall points: 0 for the area under the curve, 11 (VOC 2007), 101 (COCO)"),
            *COMMON,
        ),
        "Prints Darknet's report, and COCO's metrics if faster-coco-eval is installed",
    ),
    Command(
        "detector valid", POSITIONALS, "Write the detections in the images of `valid` to result files", valid,
        (
            Flag("thresh", float, 0.001, "Minimum confidence (exclusive)"),
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
            Flag("seed", int, 0, "Random seed; the same seed gives the same anchors"),
            Flag("show", bool, False, "Also draw anchors.png"),
        ),
        "Writes anchors.txt and counters_per_class.txt",
    ),
)  # fmt: skip
