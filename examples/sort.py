"""Study the SORT shortcut: train one small residual network with plain and with second-order shortcuts, and look inside.

    pip install "gpudarknet[study]"
    python examples/sort.py                  # a quarter of an hour; writes build/sort: numbers.json, *.png

docs/sort.md tells what came of it. Digits are scikit-learn's: 8 x 8 pixels, 1797 of them, 300 to learn from.
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

LEARN, BATCH, ITERATIONS, BLOCKS = 300, 32, 150, 5
HEAD = (
    f"[net]\nwidth=8\nheight=8\nchannels=1\nbatch={BATCH}\nmomentum=0.9\ndecay=0\nlearning_rate=0.05\n"
    f"policy=poly\npower=1\nmax_batches={ITERATIONS}\n"
)
CONV = "[convolutional]\nbatch_normalize=1\nfilters={}\nsize=3\nstride={}\npad=1\nactivation={}\n"
TAIL = "[avgpool]\n[convolutional]\nfilters=10\nactivation=linear\n[softmax]\n"
FORMS = {
    "shortcut": "[shortcut]\nfrom=-3\nactivation=leaky\n",
    "SORT, eps 0.0001": "[sort_shortcut]\nfrom=-3\nactivation=leaky\neps=0.0001\n",
    "SORT, eps 0.001": "[sort_shortcut]\nfrom=-3\nactivation=leaky\neps=0.001\n",
    "SORT, eps 0.01": "[sort_shortcut]\nfrom=-3\nactivation=leaky\neps=0.01\n",
    "SORT, eps 0.01, slope 0.1": "[sort_shortcut]\nfrom=-3\nactivation=leaky\neps=0.01\nslope=0.1\n",
}


def text(form: str) -> str:
    """Write the cfg: a convolution, residual blocks with the second at half size, a classifier."""
    blocks = ""
    for n in range(BLOCKS):
        blocks += CONV.format(16 if n < 2 else 24, 2, "leaky") if n == 2 else ""
        width = 16 if n < 2 else 24
        blocks += CONV.format(width, 1, "leaky") + CONV.format(width, 1, "linear") + form
    return HEAD + CONV.format(16, 1, "leaky") + blocks + TAIL


def digits(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return images (N, 1, 8, 8) and classes (N,) to learn from, and to test with; another split for each seed."""
    x, k = sklearn.datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    x, k = x[order].reshape(-1, 1, 8, 8).astype(np.float32) / 16, k[order]
    return x[:LEARN], k[:LEARN], x[LEARN:], k[LEARN:]


# The three lines of the backward, each of which can be left out


@dataclass(frozen=True, kw_only=True)
class Broken(Shortcut):
    """A [shortcut] whose way back lacks one of Darknet's three lines."""

    without: int = 0
    section: ClassVar[str] = "shortcut"

    def forward(self, be: Any, w: dict[str, Any], *xs: Any, ctx: ForwardContext) -> tuple[Any, Any]:
        y, back = super().forward(be, w, *xs, ctx=ctx)
        _, whole = Shortcut(from_=self.from_).forward(be, w, *xs, ctx=ctx)  # linear: without line 1

        def backward(dy: Any, grad: dict[str, Any]) -> tuple[Any, ...]:
            previous, source = whole(dy, grad) if self.without == 1 else back(dy, grad)
            return (None if self.without == 2 else previous, None if self.without == 3 else source)

        return y, backward


def without(line: int) -> cfg.Config:
    """Parse the plain network, each shortcut's way back lacking a line (1 to 3; 0: whole)."""
    config = cfg.parse(text(FORMS["shortcut"]))
    return replace(
        config,
        layers=tuple(
            Broken(from_=layer.from_, activation=layer.activation, without=line)
            if isinstance(layer, Shortcut)
            else layer
            for layer in config.layers
        ),
    )


def train(config: cfg.Config, seed: int) -> dict[str, Any]:
    """Train one network: test accuracy, the losses, and the norms of the gradient in the first and last convolution."""
    net = gd.load_network(config, backend="numpy", seed=seed)
    trainer = gd.Trainer(net, seed, emulate_darknet_cpu_bugs=False)
    x, k, test_x, test_k = digits(seed)
    kernels = [n.index for n in net.nodes if "kernel" in net.weights[n.index]]
    watched = {"first": kernels[0], "last": kernels[-2]}
    found: dict[str, Any] = {"loss": [], "first": [], "last": []}
    for step in range(ITERATIONS):
        chosen = np.random.default_rng([seed, step]).permutation(LEARN)[:BATCH]
        before = {name: trainer.momentum[i]["kernel"].copy() for name, i in watched.items()}
        found["loss"].append(trainer.step(x[chosen], np.eye(10, dtype=np.float32)[k[chosen]]) / BATCH)
        for name, i in watched.items():  # the update has multiplied the sum of old and new by the momentum
            fresh = trainer.momentum[i]["kernel"] / net.net.momentum - before[name]
            found[name].append(float(np.linalg.norm(fresh)) / BATCH)
    outputs: list[
        np.ndarray
    ] = []  # with the test batch's own statistics: the rolling ones need more iterations to settle
    net.forward(test_x, ForwardContext(train=True), lambda index, y, way: outputs.append(y))
    found["accuracy"] = float((outputs[-1].reshape(-1, 10).argmax(axis=1) == test_k).mean())
    found["inside"] = inside(net, outputs)
    return found


def inside(net: gd.Network, outputs: list[np.ndarray]) -> list[dict[str, float]]:
    """Say for each SORT shortcut how often its second-order term acts, and by what it multiplies the gradient there."""
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


def error_of_gradient(line: int, seed: int = 0) -> float:
    """Compare the way back with central differences in float64 along random directions of the first kernel: relative error."""
    config = without(line)
    net = gd.load_network(config, backend="numpy", seed=seed)
    rng = np.random.default_rng(seed)
    net.weights = [{k: a.astype(np.float64) for k, a in own.items()} for own in net.weights]
    x = digits(seed)[0][:8].astype(np.float64)
    end = len(net.nodes) - 2  # before the softmax, whose delta belongs to the loss
    kernel = net.weights[0]["kernel"]

    def run(moved: np.ndarray) -> tuple[np.ndarray, list[Any]]:
        net.weights[0]["kernel"] = moved
        outputs, ways = [], []
        net.forward(x, ForwardContext(train=True), lambda i, y, way: (outputs.append(y), ways.append(way)))
        return outputs[end], ways

    wrong, size = 0.0, 0.0
    for _ in range(10):
        u = rng.normal(size=kernel.shape)
        y, ways = run(kernel)
        dy, gradients = rng.normal(size=y.shape), [dict[str, Any]() for _ in net.nodes]
        backward(net.nodes[: end + 1], ways[: end + 1], {end: dy}, gradients)
        analytic = float((gradients[0]["kernel"] * u).sum()) if "kernel" in gradients[0] else 0.0
        h = 1e-8  # so small that hardly a leaky unit crosses its kink on the way
        numeric = float((dy * (run(kernel + h * u)[0] - run(kernel - h * u)[0])).sum()) / (2 * h)
        wrong, size = wrong + (analytic - numeric) ** 2, size + numeric**2
    return float(np.sqrt(wrong / size))


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
    """Draw accuracies, losses, and norms of the gradient; and SORT's slope around zero."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    names = list(FORMS)
    for n, name in enumerate(names):
        shade = f"C{n}"
        scores = [100 * run["accuracy"] for run in runs[name]]
        axes[0, 0].scatter(np.full(len(scores), n), scores, color=shade, s=18)
        axes[0, 0].hlines(np.mean(scores), n - 0.3, n + 0.3, color=shade)
        for axis, key in ((axes[0, 1], "loss"), (axes[1, 0], "first"), (axes[1, 1], "last")):
            curve = np.median([run[key] for run in runs[name]], axis=0)
            smooth = np.convolve(curve, np.ones(9) / 9, "valid")
            axis.plot(np.arange(len(smooth)) + 5, smooth, color=shade, label=name, linewidth=1)
    axes[0, 0].set_xticks(range(len(names)), [name.replace(", ", "\n") for name in names], fontsize=8)
    axes[0, 0].set(ylabel="test accuracy, %", title="accuracy: each seed, and the mean")
    for axis, title in (
        (axes[0, 1], "loss"), (axes[1, 0], "norm of the gradient, first convolution"),
        (axes[1, 1], "norm of the gradient, last 3 x 3 convolution"),
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
    """Train every form with every seed, write numbers and pictures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--folder", type=Path, default=Path("build/sort"))
    parser.add_argument("--seeds", type=int, default=6, help="trainings of each form")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    numbers: dict[str, Any] = {"slopes": slopes()}
    numbers["lines"] = []
    for line in range(4):
        wrong = error_of_gradient(line)
        runs = [train(without(line), seed)["accuracy"] for seed in range(args.seeds)] if line in (1, 2, 3) else []
        numbers["lines"].append({"without": line, "error": wrong, "accuracy": runs})
        print(f"without line {line}: gradient off by {wrong:.2e}, accuracy {np.round(runs, 4)}", flush=True)
    runs = {}
    for name, form in FORMS.items():
        runs[name] = [train(cfg.parse(text(form)), seed) for seed in range(args.seeds)]
        scores = [100 * run["accuracy"] for run in runs[name]]
        print(
            f"{name}: {np.mean(scores):.2f} % +- {np.std(scores, ddof=1):.2f}, {runs[name][0]['inside'][:2]}",
            flush=True,
        )
    draw(runs, args.folder)
    numbers["forms"] = runs
    (args.folder / "numbers.json").write_text(json.dumps(numbers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
