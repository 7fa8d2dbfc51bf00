"""The same network in PyTorch: one function per layer, for comparison; batch norm is folded, except for training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpudarknet.layers import Layer
from gpudarknet.layers.convolutional import fold_batch_norm
from gpudarknet.network import Network

PASS = {
    "dropout",
    "yolo",
    "region",
    "detection",
    "cost",
    "softmax",
}  # heads stay raw: some sigmoids cost nothing


def tensor(torch: Any, a: np.ndarray) -> Any:
    """Copy an array into a tensor through its buffer, which works with any NumPy version."""
    return torch.frombuffer(bytearray(np.ascontiguousarray(a, np.float32)), dtype=torch.float32).reshape(a.shape)


def activation(torch: Any, kind: str) -> Callable[[Any], Any]:
    """Return PyTorch's activation of that name. Raises NotImplementedError."""
    F = torch.nn.functional
    known: dict[str, Callable[[Any], Any]] = {
        "linear": lambda x: x,
        "leaky": lambda x: F.leaky_relu(x, 0.1, inplace=True),
        "relu": lambda x: F.relu(x, inplace=True),
        "mish": F.mish,
        "swish": F.silu,
        "logistic": torch.sigmoid,
    }
    if kind not in known:
        raise NotImplementedError(f"activation={kind} is not implemented in the PyTorch comparison")
    return known[kind]


def step(
    torch: Any, layer: Layer, w: dict[str, Any], device: str, dtype: Any, layout: Any = None
) -> Callable[..., Any]:
    """Return the layer as a function of its inputs' tensors. Raises NotImplementedError."""
    F, kind, a = torch.nn.functional, layer.section, layer.__dict__
    if kind == "convolutional" and not (a["antialiasing"] or a["binary"] or a["xnor"]):
        fused = fold_batch_norm({name: np.asarray(value) for name, value in w.items()})
        kernel, bias = (tensor(torch, fused[name]).to(device, dtype) for name in ("kernel", "bias"))
        kernel = kernel if layout is None else kernel.contiguous(memory_format=layout)
        act, pad, geometry = activation(torch, a["activation"]), layer.pad_before * layer.effective_dilation, layer  # type: ignore[attr-defined]
        return lambda x: act(
            F.conv2d(x, kernel, bias, geometry.strides, pad, geometry.effective_dilation, geometry.groups)  # type: ignore[attr-defined]
        )
    if kind == "maxpool" and not (a["maxpool_depth"] or a["antialiasing"]):
        size, total, strides = layer.window, layer.pad_total, layer.strides  # type: ignore[attr-defined]
        before, after = total // 2, total - total // 2
        border = (before, after, before, after)
        return lambda x: F.max_pool2d(F.pad(x, border, value=-torch.inf) if total else x, size, strides)
    if kind == "route":
        groups, part = a["groups"], a["group_id"]
        return lambda *xs: torch.cat([x.chunk(groups, 1)[part] for x in xs], 1)
    if kind == "shortcut" and a["weights_type"] == "none":
        act = activation(torch, a["activation"])
        return lambda *xs: act(sum(xs[1:], xs[0]))
    if kind == "sort_shortcut" and a["slope"] == 0:
        act, eps = activation(torch, a["activation"]), a["eps"]
        return lambda x, y: act(x + y + torch.sqrt(F.relu(x) * F.relu(y) + eps))
    if kind == "upsample" and a["stride"] > 0 and a["scale"] == 1:
        return lambda x: F.interpolate(x, scale_factor=a["stride"], mode="nearest")
    if kind == "reorg" and not a["reverse"]:
        return lambda x: reorg(x, a["stride"])
    if kind == "avgpool":
        return lambda x: x.mean((2, 3), keepdim=True)
    if kind in PASS:
        return lambda x: x
    raise NotImplementedError(f"[{kind}] is not implemented in the PyTorch comparison")


def reorg(x: Any, s: int) -> Any:
    """Rearrange like YOLOv2's [reorg]; see layers/reorg.py."""
    N, C, H, W = x.shape
    split = x.reshape(N, C // (s * s), H, s, W, s).permute(0, 3, 5, 1, 2, 4)
    return split.reshape(N, C * s * s, H // s, W // s)


def build(network: Network, torch: Any, device: str, dtype: Any, layout: Any = None) -> Callable[[Any], list[Any]]:
    """Return forward(x) -> outputs of the network's heads. Raises NotImplementedError for unsupported layers.

    layout: PyTorch's memory format for kernels, None for the default.
    """
    weights = network.weights
    return sequence(network, [step(torch, n.layer, weights[n.index], device, dtype, layout) for n in network.nodes])


def trainable(
    network: Network, torch: Any, layout: Any, device: str = "cpu"
) -> tuple[Callable[[Any], list[Any]], list[Any]]:
    """Return forward(x) with batch norm on batch statistics, and its trainable parameters, in float32.

    The network's weights are on NumPy.
    """
    parameters: list[Any] = []
    steps = []
    for node in network.nodes:
        layer, w = node.layer, {name: np.asarray(a) for name, a in network.weights[node.index].items()}
        if layer.section == "convolutional":
            steps.append(convolution(torch, layer, w, parameters, layout, device))
        else:
            steps.append(step(torch, layer, w, device, torch.float32, layout))
    return sequence(network, steps), parameters


def convolution(
    torch: Any, layer: Any, w: dict[str, Any], parameters: list[Any], layout: Any, device: str
) -> Callable[[Any], Any]:
    """Return a trainable [convolutional] and append its parameters."""
    F, act = torch.nn.functional, activation(torch, layer.activation)
    learned = {name: tensor(torch, w[name]).to(device) for name in ("kernel", "bias", "scale") if name in w}
    learned["kernel"] = learned["kernel"].contiguous(memory_format=layout)
    for value in learned.values():
        parameters.append(value.requires_grad_())
    kernel, bias, scale = (learned.get(name) for name in ("kernel", "bias", "scale"))
    geometry = (layer.strides, layer.pad_before * layer.effective_dilation, layer.effective_dilation, layer.groups)
    if scale is None:
        return lambda x: act(F.conv2d(x, kernel, bias, *geometry))
    mean, variance = (tensor(torch, w[name]).to(device) for name in ("mean", "variance"))
    return lambda x: act(
        F.batch_norm(F.conv2d(x, kernel, None, *geometry), mean, variance, scale, bias, True, 0.01, 1e-5)
    )


def sequence(network: Network, steps: list[Callable[..., Any]]) -> Callable[[Any], list[Any]]:
    """Return forward(x), which runs one function per layer and returns the heads' outputs."""
    sources = [node.sources for node in network.nodes]

    def forward(x: Any) -> list[Any]:
        outputs = {-1: x}
        for index, run in enumerate(steps):
            outputs[index] = run(*(outputs[source] for source in sources[index]))
            for source in sources[index]:
                if source >= 0 and network.last_use[source] <= index and source not in network.heads:
                    outputs.pop(source, None)
        return [outputs[index] for index in network.heads]

    return forward
