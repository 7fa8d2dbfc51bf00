"""`detector demo`: detect objects in a video, a camera or a stream."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

from .. import image
from ..detector import Detection, Detector
from ..image.video import BackgroundWriter, Frame, Reader, VideoWriter
from ..io import resources
from . import inputs
from .arguments import FRACTION, Arguments, Command, Flag
from .outputs import STDOUT, writable

REPORT_INTERVAL = 1.0  # seconds between two FPS lines


def demo(args: Arguments) -> int:
    """Detect objects frame by frame, reading and writing in background threads."""
    data, cfg, weights, *source = args.positionals
    names, file = inputs.data_file(data).names_path(), inputs.weights_file(weights)
    with inputs.spinner(f"Loading {weights}"):
        detector = Detector(
            resources.bundled_cfg(cfg), file, names, inputs.get_backend(args), args.letter_box, precision=args.precision
        )
    with ExitStack() as stack:
        reader = Reader(source[0] if source else args.c, args.s)
        recorder = None
        if args.out_filename:
            writable(args.out_filename, args.positionals)
            recorder = stack.enter_context(VideoWriter(args.out_filename, reader.fps / (1 + args.s)))
        path = writable(args.jsonl, args.positionals) if args.jsonl and args.jsonl != STDOUT else None
        jsonl = stack.enter_context(open(path, "w", encoding="utf-8")) if path else sys.stdout if args.jsonl else None

        def record(frame: Frame, detections: list[Detection]) -> None:
            if recorder:
                recorder.write(image.draw(frame.image, detections, detector.names))
            if jsonl:
                jsonl.write(json_line(frame, detections) + "\n")

        writer = stack.enter_context(BackgroundWriter(record))
        stack.enter_context(reader)
        meter = FpsMeter()
        code = process(detector, reader, writer, meter, args)
    summary = f"{reader.source}: {meter.frames} frames, {meter.average:.1f} FPS"
    print(summary + (f", {reader.dropped} late frames dropped" if reader.live else ""), file=sys.stderr)
    return code


def process(detector: Detector, reader: Reader, writer: BackgroundWriter, meter: FpsMeter, args: Arguments) -> int:
    """Run the network on every frame until the source ends, the time limit is reached or the user stops."""
    try:
        for frame in reader:
            detections = detector.detect(frame.image, args.thresh, args.nms)
            writer.put(frame, detections)
            for line in meter.tick():
                print(line, file=sys.stderr)
            if args.ext_output and args.jsonl != STDOUT:
                print("\n".join(object_lines(frame, detections)))
            if args.show and show(image.draw(frame.image, detections, detector.names)):
                break
            if 0 < args.time_limit_sec <= meter.elapsed:
                break
    except KeyboardInterrupt:  # the usual way to stop a camera; the recording is kept
        return 0 if reader.live else 130
    return 0


class FpsMeter:
    """Measures frames per second: of the last second, and on average."""

    def __init__(self) -> None:
        self.begin = self.reported = time.perf_counter()
        self.frames = self.recent = 0

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.begin

    @property
    def average(self) -> float:
        """Frames per second since the start."""
        return self.frames / max(self.elapsed, 1e-9)

    def tick(self) -> Iterator[str]:
        """Count a frame; once per second, yield a line with both rates, in Darknet's format."""
        self.frames += 1
        self.recent += 1
        now = time.perf_counter()
        if now - self.reported >= REPORT_INTERVAL:
            yield f"FPS:{self.recent / (now - self.reported):.1f} \t AVG_FPS:{self.average:.1f}"
            self.reported, self.recent = now, 0


def object_lines(frame: Frame, detections: list[Detection]) -> Iterator[str]:
    """Yield the frame's number and one line per object, with its box in pixels."""
    yield f"frame {frame.number}:"
    for d in detections:
        left, top, width, height = d.box
        yield (
            f"{d.label}: {d.confidence * 100:.0f}%\t(left_x: {left:4.0f}   top_y: {top:4.0f}   width: {width:4.0f}"
            f"   height: {height:4.0f})"
        )


def json_line(frame: Frame, detections: list[Detection]) -> str:
    """Return a frame's objects as one line of JSON, with the keys of Darknet's JSON files."""
    keys = ("center_x", "center_y", "width", "height")
    objects = [
        {
            "class_id": d.class_id,
            "name": d.label,
            "relative_coordinates": {k: round(v, 6) for k, v in zip(keys, d.relative, strict=True)},
            "confidence": round(d.confidence, 6),
        }
        for d in detections
    ]
    return json.dumps({"frame_id": frame.number, "time": round(frame.time, 3), "objects": objects}, ensure_ascii=False)


def show(img: image.Image) -> bool:
    """Show an image in a window; return whether Escape was pressed."""
    import cv2

    cv2.imshow("Demo", cv2.cvtColor(img, cv2.COLOR_RGB2BGR))
    return bool(cv2.waitKey(1) & 0xFF == 27)


FLAGS = (
    Flag("thresh", float, 0.25, "Minimum confidence (exclusive), 0 to 1", limits=FRACTION),
    inputs.NMS,
    Flag("c", str, "0", "Index of the camera, if no video is given"),
    Flag("s", int, 0, "Number of frames to skip after each one"),
    Flag("out_filename", str, None, "Write the annotated video to this file (.avi, .mp4, .mkv, .mov)"),
    Flag(
        "jsonl",
        str,
        None,
        "Write one line of JSON per frame to this file; - for standard output, in place of -ext_output",
    ),
    Flag("ext_output", bool, False, "Print each frame's objects with coordinates in pixels"),
    Flag("letter_box", bool, False, "Keep the frame's aspect ratio instead of stretching it"),
    Flag("show", bool, False, "Open a window; Escape stops the demo"),
    Flag("time_limit_sec", float, 0.0, "Stop after this many seconds; 0 for no limit"),
    inputs.BACKEND,
    inputs.PRECISION,
    inputs.GPU,
)
MORE = (
    "The video is a file, images such as frame_%03d.jpg, a camera index, or a URL such as rtsp://...; the default is camera 0. "
    "All frames of a file are processed; late frames of a camera or a URL are dropped, so that the output stays live. Ctrl-C "
    "stops and keeps what has been written"
)
COMMANDS = (
    Command(
        "detector demo", ("x.data", "x.cfg", "x.weights", "[video]"),
        "Detect objects in a video, a camera or a stream", demo, FLAGS, MORE,
    ),
)  # fmt: skip
