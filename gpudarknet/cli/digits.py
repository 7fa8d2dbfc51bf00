"""`demo`: the network that ships with its weights finds digits in a picture, or in yours, without any download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..io import resources
from . import detector
from .arguments import Command


def demo(args: Any) -> int:
    """Find handwritten digits in images, or in the one that ships; say where the drawn picture is."""
    images = args.words or [str(resources.find("digits", ".jpg"))]
    names, weights = resources.find("digits", ".names"), resources.find("digits", ".weights")
    code = detector.run(args, "digits", str(weights), names, images)
    if code == 0:
        print(f"The picture with its boxes: {Path(detector.PICTURE).resolve()}")
    return code


MORE = (
    "The network was trained by examples/digits.py on handwritten digits on photographs; docs/digits.md tells how well it"
    " does. Without an image it looks at one that it was not trained on"
)
COMMANDS = (Command("demo", ("[image ...]",), "Find digits, with all that ships", demo, detector.flags(0.25), MORE),)
