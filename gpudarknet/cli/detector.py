"""`detector test` and `detect`: detect objects in images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import image, tiles
from ..data.datafile import label_path
from ..detector import Detector
from ..errors import ImageError
from ..inference import ScoredBoxes
from ..io import resources
from . import fail, formats, inputs, results
from .arguments import FRACTION, Arguments, Command, Flag
from .outputs import writable, write

ANNOTATED_IMAGE = "predictions.jpg"


def test(args: Arguments) -> int:
    """Detect objects, with the class names of a .data file."""
    data, cfg, weights, *images = args.positionals
    names = inputs.data_file(data).names_path()
    return run(args, cfg, weights, names, images)


def detect(args: Arguments) -> int:
    """Detect objects, with COCO's class names."""
    cfg, weights, *images = args.positionals
    names = inputs.data_file("coco").names_path()
    return run(args, cfg, weights, names, images)


def run(args: Arguments, cfg: str, weights: str, names: Path, images: Sequence[str]) -> int:
    """Detect objects in each image; print, draw and write the requested results. Unreadable images are skipped."""
    out = writable(args.out) if args.out else None
    file = inputs.weights_file(weights)
    with inputs.spinner(f"Loading {weights}"):
        detector = Detector(resources.bundled_cfg(cfg), file, names, inputs.get_backend(args), args.letter_box)
    writers = results.requested(args)
    entries: list[str] = []
    code = 0
    for number, path in enumerate(inputs.image_paths(images), 1):
        try:
            scored, img = detect_one(detector, path, args)
        except ImageError as e:
            code = fail(str(e))
            continue
        for line in formats.text_lines(scored, detector.names, args.thresh, args.ext_output):
            print(line)
        image.write(
            ANNOTATED_IMAGE,
            image.draw(img, formats.labelled_boxes(scored, detector.names, args.thresh), detector.names),
        )
        if out:
            entries.append(formats.json_image(number, path, scored, detector.names))
        if args.save_labels:
            write(label_path(path), formats.label_lines(scored, detector.names, args.thresh))
        for writer in writers:
            writer.add(path, img, scored, detector.to_detections(scored))
    for writer in writers:
        writer.close()
    if out and entries:
        write(out, formats.json_file(entries))
    return code


def detect_one(detector: Detector, path: str, args: Arguments) -> tuple[ScoredBoxes, image.Image]:
    """Detect objects in one image and print the inference time."""
    img = detector.read(path)
    if args.tiles:
        scored = tiles.detect_boxes(detector, img, args.thresh, args.nms)
    else:
        (scored,) = detector.detect_boxes([img], args.thresh, args.nms)
    print(f"{path}: Predicted in {1000 * scored.seconds:f} milli-seconds.")
    return scored, img


def flags(thresh: float) -> tuple[Flag, ...]:
    """Return the flags of these commands, which differ only in the default threshold."""
    return (
        Flag("thresh", float, thresh, "Minimum confidence (exclusive), 0 to 1", limits=FRACTION),
        inputs.NMS,
        Flag("ext_output", bool, False, "Print coordinates in pixels"),
        Flag("out", str, None, "Write all results to this JSON file"),
        Flag("save_labels", bool, False, "Write each image's boxes to a label file next to it"),
        *results.FLAGS,
        Flag(
            "tiles",
            bool,
            False,
            "Also process the image in tiles of the network's input size, to find small objects",
        ),
        Flag("letter_box", bool, False, "Keep the image's aspect ratio instead of stretching it"),
        inputs.BACKEND,
        inputs.GPU,
    )


MORE = (
    f"Prints the detections as Darknet does and draws them in {ANNOTATED_IMAGE}. Without an image, paths are read from "
    "standard input, one per line"
)
COMMANDS = (
    Command(
        "detector test", ("x.data", "x.cfg", "x.weights", "[image ...]"),
        "Detect objects in images", test, flags(0.25), MORE,
    ),
    Command(
        "detect", ("x.cfg", "x.weights", "[image ...]"),
        "Detect objects of COCO's 80 classes in images", detect, flags(0.24), MORE,
    ),
)  # fmt: skip
