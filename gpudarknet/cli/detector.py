"""`detector test` and `detect`: find objects in images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import image, tiles
from ..data.datafile import label_path
from ..detector import Detector, ScoredBoxes
from ..errors import ImageError
from ..io import resources
from . import fail, formats, inputs, results
from .arguments import Command, Flag
from .outputs import writable, write

PICTURE = "predictions.jpg"


def test(args: Any) -> int:
    """Find objects with the names of a .data file."""
    data, cfg, weights, *images = args.words
    names = inputs.data_file(data).names_path()
    return run(args, cfg, weights, names, images)


def detect(args: Any) -> int:
    """Find objects with the names of COCO."""
    cfg, weights, *images = args.words
    names = inputs.data_file("coco").names_path()
    return run(args, cfg, weights, names, images)


def run(args: Any, cfg: str, weights: str, names: Path, images: Sequence[str]) -> int:
    """Find objects in each image; print, draw and write what was asked for. An image that cannot be read is passed over."""
    out = writable(args.out) if args.out else None
    file = inputs.weights_file(weights)
    with inputs.waiting(f"Loading {weights}"):
        detector = Detector(resources.bundled_cfg(cfg), file, names, inputs.get_backend(args), args.letter_box)
    more = results.asked(args)
    written: list[str] = []
    code = 0
    for number, path in enumerate(inputs.images(images), 1):
        try:
            found, picture = look(detector, path, args)
        except ImageError as e:
            code = fail(str(e))
            continue
        for line in formats.lines(found, detector.names, args.thresh, args.ext_output):
            print(line)
        image.write(PICTURE, image.draw(picture, formats.marks(found, detector.names, args.thresh), detector.names))
        if out:
            written.append(formats.json_image(number, path, found, detector.names))
        if args.save_labels:
            write(label_path(path), formats.label_lines(found, detector.names, args.thresh))
        for result in more:
            result.add(path, picture, found, detector.to_detections(found))
    for result in more:
        result.end()
    if out and written:
        write(out, formats.json_file(written))
    return code


def look(detector: Detector, path: str, args: Any) -> tuple[ScoredBoxes, image.Image]:
    """Find objects in one image and print how long the network took."""
    picture = image.read(path, detector.network.channels)
    if args.tiles:
        begin = time.perf_counter()
        found = tiles.detect_boxes(detector, picture, args.thresh, args.nms)
        print(f"{path}: Predicted in {1000 * (time.perf_counter() - begin):f} milli-seconds.")
        return found, picture
    x = detector.upload([picture])
    begin = time.perf_counter()
    rows = detector.infer(x, args.thresh)
    taken = time.perf_counter() - begin
    print(f"{path}: Predicted in {1000 * taken:f} milli-seconds.")
    return detector.postprocess(rows[:, 1:], picture, args.nms), picture


def flags(thresh: float) -> tuple[Flag, ...]:
    """Return the flags of both commands, which differ in one default."""
    return (
        Flag("thresh", float, thresh, "Show what is more certain than this, 0 to 1"),
        Flag("nms", float, 0.45, "Of two boxes of one class that overlap more, drop one; 0 keeps both"),
        Flag("ext_output", bool, False, "Print coordinates, in pixels"),
        Flag("out", str, None, "Write all results to this JSON file"),
        Flag("save_labels", bool, False, "Write each image's boxes to a label file beside it"),
        *results.FLAGS,
        Flag("tiles", bool, False, "Look also at each part of the network's size, for small objects in large images"),
        Flag("letter_box", bool, False, "Keep the image's proportions instead of stretching it"),
        inputs.BACKEND,
        inputs.GPU,
        Flag("dont_show", bool, False, "Accepted; no window is opened"),
        Flag("hier", float, 0.5, "Accepted; it changes nothing, as in Darknet"),
    )


MORE = (
    f"Prints what it finds, as Darknet does, and draws it in {PICTURE}. Without an image, paths are read from standard input, "
    "one a line"
)
COMMANDS = (
    Command(
        "detector test", ("x.data", "x.cfg", "x.weights", "[image ...]"),
        "Find objects in images", test, flags(0.25), MORE,
    ),
    Command(
        "detect", ("x.cfg", "x.weights", "[image ...]"),
        "Find objects of COCO's 80 classes in images", detect, flags(0.24), MORE,
    ),
)  # fmt: skip
