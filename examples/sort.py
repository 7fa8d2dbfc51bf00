"""Study the SORT shortcut: train a small residual network with plain and with second-order shortcuts, and analyze it.

    pip install "gpudarknet[study]"
    python examples/sort.py                  # a quarter of an hour; writes build/sort: results.json, *.png

docs/sort.md discusses the results. The digits are scikit-learn's: 8 x 8 pixels, 1797 of them, 300 for training.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import sklearn.datasets
from matplotlib.figure import Figure

import gpudarknet as gd
from gpudarknet import cfg
from gpudarknet.layers import ForwardContext
from gpudarknet.layers.base import resolve_index
from gpudarknet.layers.shortcut import Shortcut
from gpudarknet.layers.sort_shortcut import SortShortcut
from gpudarknet.ops import shortcut
from gpudarknet.train import backward

TRAIN, BATCH, ITERATIONS, BLOCKS = 300, 32, 150, 5
HEAD = (
    f"[net]\nwidth=8\nheight=8\nchannels=1\nbatch={BATCH}\nmomentum=0.9\ndecay=0\nlearning_rate=0.05\n"
    f"policy=poly\npower=1\nmax_batches={ITERATIONS}\n"
)
CONV = "[convolutional]\nbatch_normalize=1\nfilters={}\nsize=3\nstride={}\npad=1\nactivation={}\n"
TAIL = "[avgpool]\n[convolutional]\nfilters=10\nactivation=linear\n[softmax]\n"
VARIANTS = {
    "shortcut": "[shortcut]\nfrom=-3\nactivation=leaky\n",
    "SORT, eps 0.0001": "[sort_shortcut]\nfrom=-3\nactivation=leaky\neps=0.0001\n",
    "SORT, eps 0.001": "[sort_shortcut]\nfrom=-3\nactivation=leaky\neps=0.001\n",
    "SORT, eps 0.01": "[sort_shortcut]\nfrom=-3\nactivation=leaky\neps=0.01\n",
    "SORT, eps 0.01, slope 0.1": "[sort_shortcut]\nfrom=-3\nactivation=leaky\neps=0.01\nslope=0.1\n",
}


def cfg_text(section: str) -> str:
    """Write the cfg: a convolution, residual blocks with the second at half size, a classifier."""
    blocks = ""
    for n in range(BLOCKS):
        blocks += CONV.format(16 if n < 2 else 24, 2, "leaky") if n == 2 else ""
        width = 16 if n < 2 else 24
        blocks += CONV.format(width, 1, "leaky") + CONV.format(width, 1, "linear") + section
    return HEAD + CONV.format(16, 1, "leaky") + blocks + TAIL


def digits(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return images (N, 1, 8, 8) and classes (N,) for training and for testing; the split depends on the seed."""
    x, k = sklearn.datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    x, k = x[order].reshape(-1, 1, 8, 8).astype(np.float32) / 16, k[order]
    return x[:TRAIN], k[:TRAIN], x[TRAIN:], k[TRAIN:]


# The three lines of the backward pass, each of which can be omitted


@dataclass(frozen=True, kw_only=True)
class IncompleteShortcut(Shortcut):
    """A [shortcut] whose backward pass omits one of Darknet's three lines."""

    without: int = 0
    section: ClassVar[str] = "shortcut"

    def forward(self, be: Any, w: dict[str, Any], *xs: Any, ctx: ForwardContext) -> tuple[Any, Any]:
        """Compute the shortcut; its backward omits the line."""
        y, full = super().forward(be, w, *xs, ctx=ctx)
        _, linear = Shortcut(from_=self.from_).forward(be, w, *xs, ctx=ctx)  # without line 1

        def backward(dy: Any, grad: dict[str, Any]) -> tuple[Any, ...]:
            previous, source = linear(dy, grad) if self.without == 1 else full(dy, grad)
            return (None if self.without == 2 else previous, None if self.without == 3 else source)

        return y, backward


def without(line: int) -> cfg.Config:
    """Parse the plain network with a line omitted from each shortcut's backward pass (1 to 3; 0: none)."""
    config = cfg.parse(cfg_text(VARIANTS["shortcut"]))
    return replace(
        config,
        layers=tuple(
            IncompleteShortcut(from_=layer.from_, activation=layer.activation, without=line)
            if isinstance(layer, Shortcut)
            else layer
            for layer in config.layers
        ),
    )


def train(config: cfg.Config, seed: int) -> dict[str, Any]:
    """Train a network; return test accuracy, losses, and the gradient norms of the first and last convolution."""
    net = gd.load_network(config, backend="numpy", seed=seed)
    trainer = gd.Trainer(net, seed)
    x, k, test_x, test_k = digits(seed)
    kernels = [n.index for n in net.nodes if "kernel" in net.weights[n.index]]
    watched = {"first": kernels[0], "last": kernels[-2]}
    result: dict[str, Any] = {"loss": [], "first": [], "last": []}
    for step in range(ITERATIONS):
        chosen = np.random.default_rng([seed, step]).permutation(TRAIN)[:BATCH]
        previous = {name: trainer.momentum[i]["kernel"].copy() for name, i in watched.items()}
        result["loss"].append(trainer.step(x[chosen], np.eye(10, dtype=np.float32)[k[chosen]]) / BATCH)
        for name, i in watched.items():  # update multiplied the sum by net.momentum
            grad = trainer.momentum[i]["kernel"] / net.net.momentum - previous[name]
            result[name].append(float(np.linalg.norm(grad)) / BATCH)
    outputs: list[np.ndarray] = []  # with batch statistics: the rolling ones need more iterations
    net.forward(test_x, ForwardContext(train=True), lambda index, y, backward: outputs.append(y))
    result["accuracy"] = float((outputs[-1].reshape(-1, 10).argmax(axis=1) == test_k).mean())
    result["sort"] = sort_statistics(net, outputs)
    return result


def sort_statistics(net: gd.Network, outputs: list[np.ndarray]) -> list[dict[str, float]]:
    """Return for each SORT shortcut how often its second-order term is active, and its gradient factors there."""
    rows = []
    for node in net.nodes:
        layer = node.layer
        if not isinstance(layer, SortShortcut):
            continue
        a, b = (outputs[s] for s in (node.index - 1, resolve_index(node.index, layer.from_[0])))
        ones = np.ones_like(a)
        da, _ = shortcut.sort_shortcut_backward(net.backend, ones, a, b, layer.eps, layer.slope)
        active = da != 1
        rows.append({"active": float(active.mean()), "mean": float(da[active].mean()), "largest": float(da.max())})
    return rows


def gradient_error(line: int, seed: int = 0) -> float:
    """Return the relative error of the backward pass against central differences in float64, along random directions."""
    config = without(line)
    net = gd.load_network(config, backend="numpy", seed=seed)
    rng = np.random.default_rng(seed)
    net.weights = [{k: a.astype(np.float64) for k, a in own.items()} for own in net.weights]
    x = digits(seed)[0][:8].astype(np.float64)
    end = len(net.nodes) - 2  # before the softmax, whose delta comes from the loss
    kernel = net.weights[0]["kernel"]

    def run(value: np.ndarray) -> tuple[np.ndarray, list[Any]]:
        net.weights[0]["kernel"] = value
        outputs, backwards = [], []
        net.forward(x, ForwardContext(train=True), lambda i, y, back: (outputs.append(y), backwards.append(back)))
        return outputs[end], backwards

    error, norm = 0.0, 0.0
    for _ in range(10):
        u = rng.normal(size=kernel.shape)
        y, backwards = run(kernel)
        dy, grads = rng.normal(size=y.shape), [dict[str, Any]() for _ in net.nodes]
        backward(net.nodes[: end + 1], backwards[: end + 1], {end: dy}, grads)
        analytic = float((grads[0]["kernel"] * u).sum()) if "kernel" in grads[0] else 0.0
        h = 1e-8  # small enough that hardly any leaky unit crosses its kink
        numeric = float((dy * (run(kernel + h * u)[0] - run(kernel - h * u)[0])).sum()) / (2 * h)
        error, norm = error + (analytic - numeric) ** 2, norm + numeric**2
    return float(np.sqrt(error / norm))


def slopes() -> list[dict[str, float]]:
    """Tabulate dy/da of SORT just above, at and below a = 0 (b = 1), against central differences."""
    be = gd.backend.get("numpy")
    rows = []
    for eps in (1e-4, 1e-3, 1e-2):
        for a in (-1.0, 0.0, 1e-9, 1e-3, 1e-2, 0.1, 1.0, 10.0):
            one = np.ones((1, 1, 1, 1))
            da, _ = shortcut.sort_shortcut_backward(be, one, a * one, one, eps, 0.0)
            h = 1e-3 * abs(a) or 1e-7
            up, down = (shortcut.sort_shortcut(be, (a + s * h) * one, one, eps, 0.0).item() for s in (1, -1))
            rows.append({"eps": eps, "a": a, "slope": da.item(), "difference": (up - down) / (2 * h)})
    return rows


def draw(runs: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    """Plot accuracies, losses and gradient norms, and SORT's slope around zero."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    names = list(VARIANTS)
    for n, name in enumerate(names):
        color = f"C{n}"
        scores = [100 * run["accuracy"] for run in runs[name]]
        axes[0, 0].scatter(np.full(len(scores), n), scores, color=color, s=18)
        axes[0, 0].hlines(np.mean(scores), n - 0.3, n + 0.3, color=color)
        for axis, key in ((axes[0, 1], "loss"), (axes[1, 0], "first"), (axes[1, 1], "last")):
            curve = np.median([run[key] for run in runs[name]], axis=0)
            smooth = np.convolve(curve, np.ones(9) / 9, "valid")
            axis.plot(np.arange(len(smooth)) + 5, smooth, color=color, label=name, linewidth=1)
    axes[0, 0].set_xticks(range(len(names)), [name.replace(", ", "\n") for name in names], fontsize=8)
    axes[0, 0].set(ylabel="test accuracy, %", title="accuracy: each seed, and the mean")
    for axis, title in (
        (axes[0, 1], "loss"), (axes[1, 0], "gradient norm, first convolution"),
        (axes[1, 1], "gradient norm, last 3 x 3 convolution"),
    ):  # fmt: skip
        axis.set(title=title + ", median", xlabel="iteration", yscale="log")
        axis.grid(alpha=0.3)
    axes[0, 1].legend(fontsize=8)
    figure.savefig(folder / "sort-training.png", dpi=80)

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    a = np.linspace(-0.3, 1, 1301).reshape(1, 1, 1, -1)
    be = gd.backend.get("numpy")
    for eps in (1e-4, 1e-3, 1e-2):
        left.plot(
            a.ravel(), (shortcut.sort_shortcut(be, a, np.ones_like(a), eps, 0.0) - a - 1).ravel(), label=f"eps {eps:g}"
        )
        da, _ = shortcut.sort_shortcut_backward(be, np.ones_like(a), a, np.ones_like(a), eps, 0.0)
        right.plot(a.ravel(), da.ravel(), label=f"eps {eps:g}")
    left.set(title="second-order term, b = 1", xlabel="a", ylabel="y - a - b")
    right.set(title="slope dy/da, b = 1", xlabel="a", yscale="log")
    left.legend()
    figure.savefig(folder / "sort-slope.png", dpi=80)


def main() -> int:
    """Train every variant with every seed; write the results and plots."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--folder", type=Path, default=Path("build/sort"))
    parser.add_argument("--seeds", type=int, default=6, help="training runs per variant")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"slopes": slopes()}
    results["lines"] = []
    for line in range(4):
        error = gradient_error(line)
        runs = [train(without(line), seed)["accuracy"] for seed in range(args.seeds)] if line in (1, 2, 3) else []
        results["lines"].append({"without": line, "error": error, "accuracy": runs})
        print(f"without line {line}: gradient error {error:.2e}, accuracy {np.round(runs, 4)}", flush=True)
    runs = {}
    for name, section in VARIANTS.items():
        runs[name] = [train(cfg.parse(cfg_text(section)), seed) for seed in range(args.seeds)]
        scores = [100 * run["accuracy"] for run in runs[name]]
        print(
            f"{name}: {np.mean(scores):.2f} % +- {np.std(scores, ddof=1):.2f}, {runs[name][0]['sort'][:2]}",
            flush=True,
        )
    draw(runs, args.folder)
    results["variants"] = runs
    (args.folder / "results.json").write_text(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
