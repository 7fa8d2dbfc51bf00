"""`detector map`, `valid`, `recall` and `calc_anchors`: measure a detector and a data set."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import image
from ..data.datafile import DataFile, label_path
from ..errors import DataError
from ..io import resources
from . import inputs, tell
from .arguments import Command, Flag, UsageError
from .inputs import counting

if TYPE_CHECKING:
    from ..data import Faults
    from ..detector import Detector
    from ..evaluate import Judged, Report

# COCO's 80 classes have numbers with gaps in its result files
COCO_IDS = [n for n in range(1, 91) if n not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def opened(args: Any) -> tuple[DataFile, Detector, list[str], Faults]:
    """Read what all commands are given: .data file, network, the images of `valid`, and where faults go."""
    from ..data import Faults, read_list
    from ..detector import Detector

    file = inputs.data_file(args.words[0])
    with inputs.waiting(f"Loading {args.words[2]}"):
        cfg, weights = resources.bundled_cfg(args.words[1]), inputs.weights_file(args.words[2])
        detector = Detector(cfg, weights, file.names_path(), inputs.get_backend(args))
    file.check_names(detector.head.num_labels, detector.network.config.path)
    return file, detector, read_list(file.find("valid")), Faults(Path())


def measure(args: Any) -> None:
    """Print Darknet's report of mAP, and COCO's where its library is installed."""
    from .. import evaluate

    file, detector, paths, faults = opened(args)
    difficult = read_difficult(file)
    with counting(len(paths)) as done:
        judged = list(evaluate.judge(detector, paths, faults=faults, difficult=difficult, done=done))
    classes = len(detector.names)
    report = evaluate.mean_average_precision(judged, classes, args.iou_thresh, args.points, args.thresh)
    scores: dict[str, float] = {}
    each: Sequence[float] | None = None
    try:
        scores, found = evaluate.coco(judged, detector.names)
        each = found.tolist()
    except DataError as e:
        tell("warning", str(e))
    for text in lines(report, detector.names, each):
        print(text)
    for name, value in scores.items():
        print(f" COCO {name} = {100 * value:.2f} %" if value == value else f" COCO {name}: no object has this size")
    inputs.tell_faults(faults)


def lines(report: Report, names: Sequence[str], each: Sequence[float] | None) -> Iterator[str]:
    """Yield the lines of Darknet's report; beside each class COCO's AP where it is known."""
    yield f" detections_count = {report.detections}, unique_truth_count = {report.truths.sum()}"
    for k, name in enumerate(names):
        counts = f"(TP = {report.right[k]}, FP = {report.wrong[k]})"
        more = f"   COCO AP = {100 * each[k]:.2f}%" if each is not None and each[k] == each[k] else ""
        yield f"class_id = {k}, name = {name}, ap = {100 * report.ap[k]:.2f}%   \t {counts}{more}"
    conf, fn = report.conf_thresh, int(report.truths.sum() - report.right.sum())
    rates = f"precision = {report.precision:.2f}, recall = {report.recall:.2f}, F1-score = {report.f1:.2f}"
    yield f" for conf_thresh = {conf:.2f}, {rates}"
    yield (
        f" for conf_thresh = {conf:.2f}, TP = {report.right.sum()}, FP = {report.wrong.sum()}, FN = {fn},"
        f" average IoU = {100 * report.average_iou:.2f} %"
    )
    way = f"used {report.points} Recall-points" if report.points else "used Area-Under-Curve for each unique Recall"
    yield f" IoU threshold = {100 * report.iou_thresh:.0f} %, {way}"
    yield f" mean average precision (mAP@{report.iou_thresh:.2f}) = {report.mean:f}, or {100 * report.mean:.2f} %"


def read_difficult(file: DataFile) -> Callable[[str], str] | None:
    """Give the label file of an image's difficult boxes, if the .data file's `difficult` lists images with such labels."""
    if not file.difficult:
        return None
    from ..data import read_list

    known = {Path(path).stem: path for path in read_list(file.find("difficult"))}
    return lambda path: str(label_path(known.get(Path(path).stem, "")))


def valid(args: Any) -> None:
    """Write what is found in the images of `valid`: VOC's files, one a class, or COCO's JSON for eval=coco."""
    from .. import evaluate

    file, detector, paths, faults = opened(args)
    folder, coco = Path(file.results), file.eval == "coco"
    if coco and len(detector.names) > len(COCO_IDS):
        raise DataError(f"{file.path}: eval=coco is for COCO's 80 classes, there are {len(detector.names)}")
    entries: list[dict[str, Any]] = []
    found: list[list[str]] = [[] for _ in detector.names]
    with counting(len(paths)) as done:
        for judged in evaluate.judge(detector, paths, args.thresh, 0.6, faults, done=done):
            collect(judged, entries if coco else found, coco)
    inputs.tell_faults(faults)
    folder.mkdir(parents=True, exist_ok=True)
    if coco:
        write(folder / f"{args.out or 'coco_results'}.json", json.dumps(entries, separators=(",", ":")) + "\n")
        return
    for name, rows in zip(detector.names, found, strict=True):
        write(folder / f"{args.out or 'comp4_det_test_'}{name}.txt", "".join(row + "\n" for row in rows))


def collect(judged: Judged, into: list[Any], coco: bool) -> None:
    """Add an image's results."""
    from .. import evaluate

    if coco:
        into += evaluate.coco_entries(judged, COCO_IDS)
        return
    for k, rows in enumerate(into):
        rows += evaluate.voc_lines(judged, k)


def write(path: Path, text: str) -> None:
    """Write a result file and say so."""
    from .outputs import write as write_text

    write_text(path, text)
    print(path)


def recall(args: Any) -> None:
    """Print how many objects some box covers."""
    from .. import evaluate

    _, detector, paths, faults = opened(args)
    with counting(len(paths)) as done:
        settings = evaluate.PROPOSAL_THRESH, evaluate.PROPOSAL_NMS, faults
        judged = evaluate.judge(detector, paths, *settings, done=done, find=evaluate.proposals)
        found = evaluate.recall(judged, args.iou_thresh)
    inputs.tell_faults(faults)
    print(f"images: {len(paths)}, proposals per image: {found.proposals:.2f}")
    print(f"average IoU: {100 * found.average_iou:.2f} %, recall: {100 * found.recall:.2f} %")


def calc_anchors(args: Any) -> None:
    """Find anchors for the boxes of `train`; write anchors.txt and counters_per_class.txt."""
    from .. import evaluate
    from ..data import Faults, read_list

    if args.width < 1 or args.height < 1:
        raise UsageError("detector calc_anchors: give the input's size as in the cfg, -width 416 -height 416")
    file = inputs.data_file(args.words[0])
    faults = Faults(Path())
    truths = evaluate.truths_of(read_list(file.find("train")), file.classes, faults)
    inputs.tell_faults(faults)
    found = evaluate.calc_anchors(truths, args.num_of_clusters, args.width, args.height, args.seed)
    form = "{:.4f},{:.4f}" if args.width <= 32 else "{:3.0f},{:3.0f}"
    anchors = ", ".join(form.format(w, h) for w, h in found.sizes.tolist())
    print(f" {len(truths)} boxes, average IoU = {100 * found.average_iou:.2f} %")
    print(f"anchors = {anchors}")
    write(Path("anchors.txt"), anchors + "\n")
    counters = ", ".join(str(n) for n in found.counters.tolist())
    write(Path("counters_per_class.txt"), f"counters_per_class = {counters}\n")
    if args.show:
        image.write("anchors.png", evaluate.picture_of_anchors(truths, found, args.width, args.height))
        print("anchors.png")


WORDS = ("x.data", "x.cfg", "x.weights")
BOTH = (
    inputs.BACKEND,
    inputs.GPU,
    Flag("letter_box", bool, False, "Accepted; letter_box in [net] decides, as in Darknet"),
    Flag("dont_show", bool, False, "Accepted; no window is opened"),
)
IOU = Flag("iou_thresh", float, 0.5, "A box is right if it overlaps its object by more than this")
COMMANDS = (
    Command(
        "detector map", WORDS, "Measure mean average precision on the images of `valid`", measure,
        (
            IOU,
            Flag("thresh", float, 0.25, "Count right and wrong boxes that are more certain than this"),
            Flag("points", int, 0, "Recall points: 0 for the area under the curve, 11 (VOC 2007), 101 (COCO)"),
            *BOTH,
        ),
        "Prints Darknet's report; COCO's numbers stand beside where faster-coco-eval is installed",
    ),
    Command(
        "detector valid", WORDS, "Write what is found in the images of `valid` to result files", valid,
        (
            Flag("thresh", float, 0.001, "Write what is more certain than this"),
            Flag("out", str, None, "Begin the files' names so, instead of comp4_det_test_ or coco_results"),
            *BOTH,
        ),
        "Files go to the .data file's results folder: COCO's JSON for eval=coco, else VOC's, one a class",
    ),
    Command("detector recall", WORDS, "Measure how many objects of `valid` some box covers", recall, (IOU, *BOTH)),
    Command(
        "detector calc_anchors", ("x.data",), "Find anchors for the boxes of `train`", calc_anchors,
        (
            Flag("num_of_clusters", int, 5, "How many anchors"),
            Flag("width", int, 0, "Width of the network's input in pixels"),
            Flag("height", int, 0, "Height of the network's input in pixels"),
            Flag("seed", int, 0, "Where chance begins; the same seed gives the same anchors"),
            Flag("show", bool, False, "Also draw anchors.png"),
        ),
        "Writes anchors.txt and counters_per_class.txt",
    ),
)  # fmt: skip
