"""`demo`: detect digits in the bundled image, or in yours, with the bundled network. Needs no download."""

from __future__ import annotations

from pathlib import Path

from ..io import resources
from . import detector, inputs, results
from .arguments import Arguments, Command


def demo(args: Arguments) -> int:
    """Detect handwritten digits in images, or in the bundled one; print where the annotated image is."""
    words = args.positionals or [str(resources.find("digits", ".jpg"))]
    names, weights = resources.find("digits", ".names"), resources.find("digits", ".weights")
    code = detector.run(args, "digits", str(weights), names, words)
    if code == 0 and not (detector.are_several(words) or args.out_dir or results.uses_stdout(args)):
        print(f"annotated image: {Path(results.PREDICTIONS).resolve()}")
    return code


MORE = (
    "The network was trained by examples/digits.py on handwritten digits pasted on photographs; docs/digits.md describes it"
    " and its accuracy. Without an image it uses the bundled one, which is not in the training set"
)
COMMANDS = (
    Command("demo", (inputs.SOURCE,), "Detect digits with the bundled network", demo, detector.flags(0.25), MORE),
)
