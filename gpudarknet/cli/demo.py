"""`detector demo`: find objects in a video, a camera or a stream."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from .. import image
from ..detector import Detection, Detector
from ..image.video import Frame, Reader, Recorder, Writer
from ..io import resources
from . import inputs
from .arguments import Command, Flag
from .outputs import writable

SAY = 1.0  # seconds between two lines of FPS


def demo(args: Any) -> int:
    """Find objects frame by frame; read and write in threads of their own."""
    data, cfg, weights, *source = args.words
    names, file = inputs.data_file(data).names_path(), inputs.weights_file(weights)
    with inputs.waiting(f"Loading {weights}"):
        detector = Detector(resources.bundled_cfg(cfg), file, names, inputs.get_backend(args), args.letter_box)
    with ExitStack() as stack:
        reader = Reader(source[0] if source else args.c, args.s)
        recorder = None
        if args.out_filename:
            recorder = stack.enter_context(Recorder(args.out_filename, reader.fps / (1 + args.s)))
        lines = writable(args.jsonl) if args.jsonl and args.jsonl != "-" else None
        stream = (
            stack.enter_context(open(lines, "w", encoding="utf-8")) if lines else sys.stdout if args.jsonl else None
        )

        def record(frame: Frame, found: list[Detection]) -> None:
            if recorder:
                recorder.write(image.draw(frame.image, found, detector.names))
            if stream:
                stream.write(json_line(frame, found) + "\n")

        writer = stack.enter_context(Writer(record))
        stack.enter_context(reader)
        clock = Clock()
        code = watch(detector, reader, writer, clock, args)
    say = f"{reader.source}: {clock.frames} frames, {clock.average:.1f} FPS"
    print(say + (f", {reader.dropped} late frames dropped" if reader.live else ""), file=sys.stderr)
    return code


def watch(detector: Detector, reader: Reader, writer: Writer, clock: Clock, args: Any) -> int:
    """Run the network on every frame until the source, the time or the user's patience ends."""
    try:
        for frame in reader:
            found = detector.detect(frame.image, args.thresh, args.nms)
            writer.put(frame, found)
            for line in clock.tick():
                print(line, file=sys.stderr)
            if args.ext_output:
                print("\n".join(object_lines(frame, found)))
            if args.show and show(image.draw(frame.image, found, detector.names)):
                break
            if 0 < args.time_limit_sec <= clock.spent:
                break
    except KeyboardInterrupt:  # the way to end a camera; what was recorded is kept
        return 0 if reader.live else 130
    return 0


class Clock:
    """Counts frames: the rate of the last second, and of all."""

    def __init__(self) -> None:
        self.begin = self.said = time.perf_counter()
        self.frames = self.since = 0

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.begin

    @property
    def average(self) -> float:
        """Frames per second since the start."""
        return self.frames / max(self.spent, 1e-9)

    def tick(self) -> Iterator[str]:
        """Count a frame; once a second yield a line with the rates, as Darknet prints it."""
        self.frames += 1
        self.since += 1
        now = time.perf_counter()
        if now - self.said >= SAY:
            yield f"FPS:{self.since / (now - self.said):.1f} \t AVG_FPS:{self.average:.1f}"
            self.said, self.since = now, 0


def object_lines(frame: Frame, found: list[Detection]) -> Iterator[str]:
    """Yield the frame's number and a line for each object, with its box in pixels."""
    yield f"frame {frame.number}:"
    for d in found:
        left, top, width, height = d.box
        yield (
            f"{d.label}: {d.confidence * 100:.0f}%\t(left_x: {left:4.0f}   top_y: {top:4.0f}   width: {width:4.0f}"
            f"   height: {height:4.0f})"
        )


def json_line(frame: Frame, found: list[Detection]) -> str:
    """Return a frame's objects as one line of JSON, in the words of Darknet's JSON files."""
    keys = ("center_x", "center_y", "width", "height")
    objects = [
        {
            "class_id": d.class_id,
            "name": d.label,
            "relative_coordinates": {k: round(v, 6) for k, v in zip(keys, d.relative, strict=True)},
            "confidence": round(d.confidence, 6),
        }
        for d in found
    ]
    return json.dumps({"frame_id": frame.number, "time": round(frame.time, 3), "objects": objects}, ensure_ascii=False)


def show(picture: Any) -> bool:
    """Show a picture in a window; say whether Escape was pressed."""
    import cv2

    cv2.imshow("Demo", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    return bool(cv2.waitKey(1) & 0xFF == 27)


FLAGS = (
    Flag("thresh", float, 0.25, "Show what is more certain than this, 0 to 1"),
    Flag("nms", float, 0.45, "Of two boxes of one class that overlap more, drop one; 0 keeps both"),
    Flag("c", str, "0", "Number of the camera, where no video is given"),
    Flag("s", int, 0, "Pass over so many frames after each one"),
    Flag("out_filename", str, None, "Write the video with its boxes to this file (.avi, .mp4, .mkv, .mov)"),
    Flag("jsonl", str, None, "Write a line of JSON for each frame to this file, - for standard output"),
    Flag("ext_output", bool, False, "Print each frame's objects with coordinates, in pixels"),
    Flag("letter_box", bool, False, "Keep the frame's proportions instead of stretching it"),
    Flag("show", bool, False, "Open a window; Escape ends the demo"),
    Flag("time_limit_sec", float, 0.0, "End after so many seconds; 0 for no limit"),
    inputs.BACKEND,
    inputs.GPU,
    Flag("dont_show", bool, False, "Accepted; a window is opened only with -show"),
)
MORE = (
    "The video is a file, a camera's number, or a URL such as rtsp://...; without one it is camera 0. Of a file every frame "
    "is used; of a camera or a URL late frames are dropped, so that what is shown is what happens. Ctrl-C ends it and keeps "
    "what was written"
)
COMMANDS = (
    Command(
        "detector demo", ("x.data", "x.cfg", "x.weights", "[video]"),
        "Find objects in a video, a camera or a stream", demo, FLAGS, MORE,
    ),
)  # fmt: skip
