"""A network's layers as text: for Graphviz, and for Netron."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A layer with its output's shape and the names of the layers that it reads."""

    name: str
    kind: str
    shape: tuple[int, ...]
    inputs: tuple[str, ...]


def dot(entries: Sequence[Entry], engine: str) -> str:
    """Return a Graphviz graph; `engine` is where the layers run, such as numpy/CPU."""
    lines = ["digraph G {"]
    for e in entries:
        size = " x ".join(map(str, e.shape))
        label = rf"{e.name}\n{e.kind or 'Input'}\noutput: {size}\l" + (rf"{engine}\n" if e.kind else "")
        lines.append(f'\t"{e.name}" [label="{label}" fillcolor="#ffffb3" style=filled shape=box]')
    lines += [f'\t"{source}" -> "{e.name}"' for e in entries for source in e.inputs]
    return "\n".join([*lines, "}"]) + "\n"


def pbtxt(entries: Sequence[Entry], input_name: str) -> str:
    """Return an ONNX-like graph as protobuf text; the first entry is the input."""
    lines = ['producer_name: "gpudarknet"', "graph {", "  input {", f'    name: "{input_name}"']
    lines += ["    type {", "      tensor_type {", "        elem_type: 1", "        shape {"]
    lines += [f"          dim {{ dim_value: {n} }}" for n in entries[0].shape]
    lines += ["        }", "      }", "    }", "  }"]
    for e in entries[1:]:
        lines += ["  node {", *(f'    input: "{output(name, entries[0].name, input_name)}"' for name in e.inputs)]
        lines += [
            f'    output: "{output(e.name, "", "")}"',
            f'    name: "{e.name}"',
            f'    op_type: "cv::dnn::{e.kind}"',
        ]
        lines += [*attribute("Output shape", " x ".join(map(str, e.shape))), "  }"]
    return "\n".join([*lines, "}"]) + "\n"


def output(name: str, first: str, input_name: str) -> str:
    """Return the name of a layer's output."""
    return input_name if name == first else f"{name}_output0"


def attribute(name: str, value: str) -> Iterator[str]:
    """Yield the lines of an attribute of a node."""
    yield from ("    attribute {", f'      name: "{name}"', "      type: STRING", f'      s: "{value}"', "    }")
