"""`export`: a network as ONNX, its weights as safetensors or .weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import DataError
from ..io import resources
from ..network import Network, load_network
from . import inputs
from .arguments import Command, Flag


def export(args: Any) -> None:
    """Write a network in the form that the output's name ends in."""
    cfg, weights, out = args.words
    writer = WRITERS.get(Path(out).suffix)
    if writer is None:
        raise DataError(f"{out}: cannot tell the form; end the name in {', '.join(WRITERS)}")
    size = args.width or None, args.height or None
    network = load_network(resources.bundled_cfg(cfg), inputs.weights_file(weights), "numpy", 1, *size)
    with inputs.waiting(f"Writing {out}"):
        said = writer(network, out, args)
    print(f"{out}: {said}, {Path(out).stat().st_size / 1e6:.1f} MB")


def onnx(network: Network, out: str, args: Any) -> str:
    """Write an ONNX file; say what goes in and what comes out."""
    from ..export import write_onnx

    if args.batch < 1:
        raise DataError(f"-batch {args.batch}: must be at least 1; -dynamic takes any number of images")
    write_onnx(network, out, None if args.dynamic else args.batch, args.fp16, args.boxes)
    heads = "boxes, scores" if args.boxes else ", ".join(f"layer_{index}" for index in network.heads)
    count = "N" if args.dynamic else args.batch
    return f"input {count} x {' x '.join(map(str, network.net.input))} -> {heads}"


def weights(network: Network, out: str, args: Any) -> str:
    """Write the weights alone; say how many images they have seen."""
    network.save_weights(out)
    return f"weights after {network.seen} images"


WRITERS = {".onnx": onnx, ".safetensors": weights, ".weights": weights}
FLAGS = (
    Flag("batch", int, 1, "Images that an ONNX file takes at a time"),
    Flag("dynamic", bool, False, "Let an ONNX file take any number of images at a time"),
    Flag("fp16", bool, False, "Compute in 16-bit floats inside an ONNX file; input and outputs stay 32-bit"),
    Flag("boxes", bool, False, "Give an ONNX file the outputs boxes and scores, instead of the heads' raw maps"),
    Flag("width", int, 0, "Width of the input in pixels, 0 for the cfg's"),
    Flag("height", int, 0, "Height of the input in pixels, 0 for the cfg's"),
)
MORE = (
    "The form is what the name of the output ends in: .onnx (needs the extra onnx), .safetensors or .weights. A .safetensors "
    "file serves as weights in every command"
)
COMMANDS = (
    Command(
        "export", ("x.cfg", "x.weights", "out.onnx"),
        "Write a network as ONNX, or its weights as safetensors", export, FLAGS, MORE,
    ),
)  # fmt: skip
