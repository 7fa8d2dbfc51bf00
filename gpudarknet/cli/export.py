"""`export`: a network as ONNX, its weights as safetensors or .weights."""

from __future__ import annotations

from pathlib import Path

from ..data.datafile import read_names
from ..errors import DataError
from ..export import write_onnx
from ..io import resources
from ..network import Network, load_network
from . import inputs
from .arguments import Arguments, Command, Flag


def export(args: Arguments) -> None:
    """Write a network in the format of the output's file name extension."""
    cfg, weights, out = args.positionals
    writer = WRITERS.get(Path(out).suffix)
    if writer is None:
        raise DataError(f"{out}: unknown format; use {', '.join(WRITERS)}")
    size = args.width or None, args.height or None
    network = load_network(resources.bundled_cfg(cfg), inputs.weights_file(weights), "numpy", 1, *size)
    with inputs.spinner(f"Writing {out}"):
        summary = writer(network, out, args)
    print(f"{out}: {summary}, {Path(out).stat().st_size / 1e6:.1f} MB")


def onnx(network: Network, out: str, args: Arguments) -> str:
    """Write an ONNX file; describe its input and outputs."""
    if args.batch < 1:
        raise DataError(f"-batch {args.batch}: must be at least 1; -dynamic allows any batch size")
    names = read_names(args.names) if args.names else None
    write_onnx(network, out, None if args.dynamic else args.batch, args.fp16, args.boxes, names)
    heads = "boxes, scores" if args.boxes else ", ".join(f"layer_{index}" for index in network.heads)
    count = "N" if args.dynamic else args.batch
    return f"input {count} x {' x '.join(map(str, network.net.input))} -> {heads}"


def weights(network: Network, out: str, args: Arguments) -> str:
    """Write the weights only; describe how long they were trained."""
    network.save_weights(out)
    return f"weights after {network.seen} images"


WRITERS = {".onnx": onnx, ".safetensors": weights, ".weights": weights}
FLAGS = (
    Flag("batch", int, 1, "Batch size of an ONNX file"),
    Flag("dynamic", bool, False, "Allow any batch size in an ONNX file"),
    Flag("fp16", bool, False, "Compute in fp16 in an ONNX file; its input and outputs stay fp32"),
    Flag("boxes", bool, False, "ONNX outputs are boxes and scores instead of the heads' raw maps"),
    Flag("names", str, "", "File with the names of the classes, for the metadata of an ONNX file"),
    Flag("width", int, 0, "Width of the input in pixels; 0 for the cfg's"),
    Flag("height", int, 0, "Height of the input in pixels; 0 for the cfg's"),
)
MORE = (
    "The extension of the output selects the format: .onnx (needs the extra onnx), .safetensors or .weights. Every command "
    "accepts a .safetensors file as weights"
)
COMMANDS = (
    Command(
        "export", ("x.cfg", "x.weights", "out.onnx"),
        "Write a network as ONNX, or its weights as safetensors", export, FLAGS, MORE,
    ),
)  # fmt: skip
