"""Training runs of Darknet (AlexeyAB/darknet): networks, weights and data from seeds.

data/original.npz holds its results, recorded with data/original.c and its plain CPU build (no GPU,
OpenCV, AVX or OpenMP): of every run in RUNS the cost of each of four steps, the largest change of a weight after steps 1
and 4, and the changes of up to 150 weights. Runs with batch norm, or where several layers read one, are marked
`patched`: that build is wrong there, so they were recorded after applying PATCHES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

PATCHES = """
every layer's delta is cleared before a step, and every layer's weights are updated;
convolutions, [activation], [batchnorm], [reorg] and [sam] add to the delta of their source instead of replacing it;
relu6 computes relu6;
batch norm computes as cuDNN does: biased variance, epsilon 1e-5 inside the root, rolling rate 0.01, biases learn.
"""
STEPS, SAMPLE, N = 4, 150, 4
FILES = {
    "TREE": "a -1\nb -1\nc 1\nd 1\ne 0\nf 0\ng 0\n",
    "LABELS": "2\n0\n3\n1\n",  # classes of labels -> of the network
    "CLASSES": "3\n5\n6\n",  # the same for the tree
}
PARENTS = (-1, -1, 1, 1, 0, 0, 0)
Truth = Callable[[np.random.Generator], np.ndarray]


@dataclass
class DarknetRun:
    """One training: the cfg's text, how truths (N, truths) are drawn, images seen before, whether the build was patched."""

    body: str
    truth: Truth
    net: dict[str, str] = field(default_factory=dict)
    seen: int = 0
    patched: bool = False

    def text(self, folder: Path) -> str:
        """Return the cfg; the files that it names are written into folder."""
        keys = {
            "batch": "4",
            "width": "24",
            "height": "20",
            "channels": "3",
            "learning_rate": "0.01",
            "max_batches": "1000",
        }
        text = "[net]\n" + "".join(f"{k}={v}\n" for k, v in (keys | self.net).items()) + "\n" + self.body
        for name, content in FILES.items():
            if name in text:
                (folder / name).write_text(content)
                text = text.replace(name, str(folder / name))
        return text

    def data(self, shape: tuple[int, int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return images (STEPS, N, C, H, W) and truths (STEPS, N, truths)."""
        rng = np.random.default_rng(seed)
        return rng.random((STEPS, N, *shape), np.float32), np.stack([self.truth(rng) for _ in range(STEPS)])


def weights(net, seed: int) -> np.ndarray:
    """Draw the weights of a Network of ours, in file order."""
    rng, drawn = np.random.default_rng(seed), []
    for own in net.weights:
        for name, a in own.items():
            last = name.rpartition(".")[2]
            if last in ("bias", "mean"):
                drawn.append(rng.normal(0, 0.1, a.size))
            elif last in ("scale", "variance"):
                drawn.append(rng.uniform(0.7, 1.3, a.size))
            else:
                drawn.append(rng.normal(0, 1 / np.sqrt(max(np.prod(a.shape[1:]), 1)), a.size))
    return np.concatenate(drawn).astype(np.float32)


def sample(count: int) -> np.ndarray:
    """Return which of `count` weights are kept, in order."""
    return np.sort(np.random.default_rng(0).permutation(count)[:SAMPLE])


# Truths


def boxes(classes: int, wild: bool = True, only: bool = False) -> Truth:
    """10 rows an image, of which 0, 3, 6 and 9 are used; one box twice with two classes, one nearly; wild: one class too many.

    only: two images of the batch hold a class without a box, as [region] with a tree knows them.
    """

    def draw(rng: np.random.Generator) -> np.ndarray:
        t = np.zeros((N, 10, 6), np.float32)
        for n, k in enumerate((0, 3, 6, 9)):
            t[n, :k, :2] = rng.uniform(0.05, 0.95, (k, 2))
            t[n, :k, 2:4] = rng.uniform(0.1, 0.75, (k, 2))
            t[n, :k, 4] = rng.integers(0, classes, k)
            if k > 3:
                t[n, 1, :4], t[n, 1, 4] = t[n, 0, :4], (t[n, 0, 4] + 1) % classes
                t[n, 2, :4], t[n, 2, 4] = t[n, 0, :4] * (1, 1, 1.1, 0.95), t[n, 0, 4]
            if k > 6 and wild:
                t[n, 4, 4] = classes + 1
        if only:
            t[1, 0, :4], t[3, 2, :4] = 2e5, 9e5
        return t.reshape(N, -1)

    return draw


def one_hot(classes: int, groups: int = 1) -> Truth:
    """A class an image, in each of `groups`."""
    return lambda rng: np.eye(classes, dtype=np.float32)[rng.integers(classes, size=(N, groups))].reshape(N, -1)


def smoothed(rng: np.random.Generator) -> np.ndarray:
    """A class of 5 at 0.92, the others at 0.02."""
    return one_hot(5)(rng) * np.float32(0.9) + np.float32(0.02)


def numbers(masked: bool = False) -> Truth:
    """5 real numbers an image; masked: some are -1234."""

    def draw(rng: np.random.Generator) -> np.ndarray:
        y = rng.normal(0, 1.5, (N, 5)).astype(np.float32)
        return np.where(rng.random(y.shape) < 0.3, np.float32(-1234), y) if masked else y

    return draw


def path_in_tree(rng: np.random.Generator) -> np.ndarray:
    """A class of the tree and its ancestors."""
    y = np.zeros((N, 7), np.float32)
    for n in range(N):
        k = int(rng.integers(7))
        while k >= 0:
            y[n, k] = 1
            k = PARENTS[k]
    return y


def cells(rng: np.random.Generator) -> np.ndarray:
    """[detection]'s truth: 3 x 3 cells, 3 classes; half of the cells hold an object, none in the first image."""
    t = np.zeros((N, 9, 8), np.float32)
    for n, c in np.argwhere(rng.random((N, 9)) < 0.5):
        if n:
            t[n, c, 0] = t[n, c, 1 + rng.integers(3)] = 1
            t[n, c, 4:] = rng.uniform(0.1, 0.9, 4)
    return t.reshape(N, -1)


# Networks


def conv(filters: int, size: int = 3, stride: int = 1, activation: str = "leaky", more: str = "") -> str:
    return f"[convolutional]\nfilters={filters}\nsize={size}\nstride={stride}\npad=1\nactivation={activation}\n{more}\n"


NORM = "batch_normalize=1\n"
POOL = "[maxpool]\nsize=2\nstride=2\n\n"
DETECTOR = {"width": "64", "height": "48", "learning_rate": "0.0005"}
ANCHORS = "anchors=8,10, 14,20, 22,16, 30,34, 40,28, 44,46\nnum=6\njitter=0\nmax=10\n"
AVERAGE, SOFTMAX = "[avgpool]\n\n", "[softmax]\n"


def head(section: str, keys: str, filters: int, activation: str) -> str:
    """A backbone of stride 8 and a head; keys are separated by blanks."""
    body = conv(8) + POOL + conv(12, stride=2) + conv(16, stride=2) + conv(filters, 1, 1, activation)
    return body + f"[{section}]\n" + keys.replace(" ", "\n") + "\n"


def yolo(keys: str = "", mask: str = "0,1,2", activation: str = "linear", classes: int = 4, **more) -> DarknetRun:
    keys = f"mask={mask} classes={classes} {keys}"
    body = head("yolo", keys, (5 + classes) * (mask.count(",") + 1), activation) + ANCHORS
    return DarknetRun(body, boxes(classes), DETECTOR, **more)


def gaussian(keys: str = "") -> DarknetRun:
    body = head("Gaussian_yolo", "mask=0,1,2 classes=4 " + keys, 39, "linear") + ANCHORS
    return DarknetRun(body, boxes(4, wild=False), DETECTOR | {"learning_rate": "0.00005"})


def region(keys: str = "", classes: int = 4, labels: int = 0, only: bool = False, seen: int = 20000) -> DarknetRun:
    body = head("region", f"num=3 coords=4 classes={classes} " + keys, 3 * (5 + classes), "linear")
    body += "anchors=0.8,1.1, 1.9,1.4, 2.6,3.1\njitter=0\nmax=10\n"
    return DarknetRun(body, boxes(labels or classes, wild=not only and not labels, only=only), DETECTOR, seen)


def detection(keys: str = "", num: int = 2) -> DarknetRun:
    body = conv(8) + POOL + conv(8, stride=2) + conv(8, stride=2) + conv(5 * num + 3, 1, 1, "logistic")
    body += f"[detection]\nclasses=3\ncoords=4\nside=3\nnum={num}\n" + keys.replace(" ", "\n") + "\n"
    return DarknetRun(body, cells, {"width": "20"})


def classifier(end: str, truth: Truth, filters: int = 5, **net: str) -> DarknetRun:
    return DarknetRun(conv(8, stride=3) + conv(6, stride=2) + conv(filters, 3, 4, "linear") + end, truth, net)


def patched(body: str) -> DarknetRun:
    """A classifier behind layers that the CPU build gets wrong."""
    return DarknetRun(body + conv(5, 1, 1, "linear") + AVERAGE + SOFTMAX, one_hot(5), patched=True)


SMALL = conv(27, 1, 1, "linear") + "[yolo]\nmask=0,1,2\nanchors=4,5, 7,10, 11,8\nclasses=4\nnum=3\njitter=0\nmax=10\n\n"
PYRAMID = (
    conv(8, stride=2) + conv(8, stride=2, more=NORM) + SMALL
    + "[route]\nlayers=-3\n" + conv(5, 1) + "[upsample]\nstride=2\n[route]\nlayers=-1,0\n" + conv(7, more=NORM) + SMALL
)  # fmt: skip
CSP = (
    conv(8, stride=2) + "[route]\nlayers=-1\ngroups=2\ngroup_id=1\n" + conv(4) + conv(4) + "[route]\nlayers=-1,-2\n"
    + conv(8, 1) + "[route]\nlayers=-6,-1\n" + POOL + conv(9)
)  # fmt: skip
SPP = (
    conv(4, stride=2) + "[maxpool]\nsize=3\nstride=1\n[route]\nlayers=-2\n[maxpool]\nsize=5\nstride=1\n"
    "[route]\nlayers=-1,-3,-4\n" + conv(6, 1)
)  # fmt: skip
CONNECTED = "[connected]\noutput={}\nactivation={}\n\n"
LOCAL = "[local]\nfilters=4\nsize=3\nstride=1\npad=1\nactivation=leaky\n\n"
CELLS = "[detection]\nclasses=3\ncoords=4\nside=3\nnum=2\nrescore=1\nsqrt=1\n"
SQUEEZE = conv(8) + AVERAGE + conv(8, 1, 1, "logistic") + "[scale_channels]\nfrom=-3\nactivation=linear\n" + conv(4)

RUNS = {
    "yolo mse": yolo(),
    "yolo mse iou_thresh": yolo("iou_thresh=0.213"),
    "yolo iou": yolo("iou_loss=iou iou_thresh=0.2"),
    "yolo giou": yolo("iou_loss=giou iou_normalizer=0.5 max_delta=0.1"),
    "yolo diou": yolo("iou_loss=diou"),
    "yolo ciou": yolo("iou_loss=ciou iou_normalizer=0.07 max_delta=0.3"),
    "yolo thresh kind giou": yolo("iou_loss=giou iou_thresh=0.2 iou_thresh_kind=giou"),
    "yolo thresh kind diou": yolo("iou_loss=diou iou_thresh=0.2 iou_thresh_kind=diou"),
    "yolo thresh kind ciou": yolo("iou_loss=ciou iou_thresh=0.2 iou_thresh_kind=ciou"),
    "yolo no details": yolo("iou_loss=ciou show_details=0"),
    "yolo obj_normalizer": yolo("obj_normalizer=0.4 iou_loss=ciou"),
    "yolo no objectness": yolo("obj_normalizer=0 iou_loss=ciou iou_thresh=0.2"),
    "yolo cls_normalizer": yolo("cls_normalizer=0.3"),
    "yolo ignore_thresh": yolo("ignore_thresh=0.1"),
    "yolo truth_thresh": yolo("ignore_thresh=0.1 truth_thresh=0.15"),
    "yolo truth_thresh ciou": yolo("ignore_thresh=0.1 truth_thresh=0.15 iou_loss=ciou"),
    "yolo smooth": yolo("objectness_smooth=1 ignore_thresh=0.1"),
    "yolo smooth truth": yolo("objectness_smooth=1 ignore_thresh=0.1 truth_thresh=0.2 iou_loss=diou"),
    "yolo label smoothing": yolo("label_smooth_eps=0.1 iou_thresh=0.2"),
    "yolo focal": yolo("focal_loss=1"),
    "yolo focal iou_thresh": yolo("focal_loss=1 iou_thresh=0.2"),
    "yolo counters": yolo("counters_per_class=10,40,0,20 cls_normalizer=0.5"),
    "yolo counters limit": yolo("counters_per_class=10,400,0,20 max_delta=3 iou_loss=ciou iou_thresh=0.2"),
    "yolo counters truth": yolo("counters_per_class=10,40,5,20 objectness_smooth=1 truth_thresh=0.2 iou_loss=iou"),
    "yolo scale_x_y": yolo("scale_x_y=1.2 iou_loss=giou"),
    "yolo all anchors": yolo(mask="0,1,2,3,4,5"),
    "yolo two anchors": yolo("iou_thresh=0.2", mask="5,1"),
    "yolo one class": yolo("iou_loss=ciou", classes=1),
    "yolo new_coords": yolo("new_coords=1 scale_x_y=2", activation="logistic"),
    "yolo new_coords giou": yolo("new_coords=1 scale_x_y=2 iou_loss=giou truth_thresh=0.3", activation="logistic"),
    "yolo csp": yolo(
        "new_coords=1 scale_x_y=2.0 objectness_smooth=1 ignore_thresh=0.2 iou_thresh=0.2 iou_loss=ciou iou_normalizer=0.05"
        " obj_normalizer=4.0 cls_normalizer=0.5 max_delta=2", activation="logistic"
    ),
    "yolo map": yolo("map=LABELS iou_thresh=0.2 iou_loss=ciou truth_thresh=0.2 counters_per_class=1,5,20,3"),
    "gaussian mse": gaussian(),
    "gaussian iou_thresh": gaussian("iou_thresh=0.2"),
    "gaussian iou": gaussian("iou_loss=iou"),
    "gaussian giou": gaussian("iou_loss=giou iou_thresh=0.2 iou_thresh_kind=giou"),
    "gaussian diou": gaussian("iou_loss=diou max_delta=0.5 scale_x_y=1.2"),
    "gaussian ciou": gaussian("iou_loss=ciou iou_normalizer=0.5 uc_normalizer=0.3"),
    "gaussian normalizers": gaussian("uc_normalizer=0.5 obj_normalizer=0.5 max_delta=5"),
    "gaussian left_top": gaussian("yolo_point=left_top"),
    "gaussian left_top ciou": gaussian("yolo_point=left_top iou_loss=ciou iou_thresh=0.2"),
    "gaussian right_bottom giou": gaussian("yolo_point=right_bottom iou_loss=giou"),
    "gaussian smooth": gaussian("objectness_smooth=1 ignore_thresh=0.1"),
    "gaussian smooth truth": gaussian("objectness_smooth=1 ignore_thresh=0.1 truth_thresh=0.2 iou_thresh=0.2"),
    "gaussian truth_thresh": gaussian("ignore_thresh=0.1 truth_thresh=0.2"),
    "gaussian label smoothing": gaussian("label_smooth_eps=0.1"),
    "gaussian counters": gaussian("counters_per_class=10,40,5,20 cls_normalizer=0.5 objectness_smooth=1 truth_thresh=0.3"),
    "region": region(),
    "region first images": region(seen=0),
    "region bias_match": region("bias_match=1"),
    "region softmax rescore": region("softmax=1 rescore=1"),
    "region scales": region("object_scale=5 noobject_scale=0.5 class_scale=2 coord_scale=3 thresh=0.1"),
    "region classfix 1": region("classfix=1 thresh=0.1"),
    "region classfix 2": region("classfix=2 thresh=0.1 softmax=1"),
    "region classfix -1": region("classfix=-1"),
    "region focal": region("focal_loss=1 softmax=1 bias_match=1"),
    "region tree": region("tree=TREE softmax=1", 7),
    "region tree class only": region("tree=TREE softmax=1 class_scale=2 classfix=1 thresh=0.1", 7, only=True),
    "region map": region("tree=TREE map=CLASSES softmax=1 bias_match=1 rescore=1", 7, labels=3),
    "detection": detection(),
    "detection sqrt": detection("sqrt=1"),
    "detection rescore": detection("sqrt=1 rescore=1 softmax=1", num=3),
    "detection scales": detection("coord_scale=5 object_scale=2 noobject_scale=0.5 class_scale=3"),
    "detection forced": detection("forced=1 sqrt=1"),
    "softmax": classifier(SOFTMAX, one_hot(5)),
    "softmax smoothed": classifier(SOFTMAX, smoothed),
    "softmax groups temperature": classifier(SOFTMAX + "groups=3\ntemperature=0.7\n", one_hot(2, 3), 6),
    "softmax tree": classifier(SOFTMAX + "tree=TREE\n", path_in_tree, 7),
    "softmax cost": classifier(SOFTMAX + "[cost]\ntype=sse\n", one_hot(5)),
    "cost sse": classifier("[cost]\ntype=sse\nscale=0.7\n", numbers()),
    "cost smooth": classifier("[cost]\ntype=smooth\n", numbers()),
    "cost masked": classifier("[cost]\ntype=masked\nscale=2\n", numbers(masked=True)),
    "policy steps": classifier(SOFTMAX, one_hot(5), policy="steps", steps="2,4", scales=".1,5"),
    "policy step": classifier(SOFTMAX, one_hot(5), policy="step", step="2", scale=".5", momentum="0", decay="0.1"),
    "policy exp": classifier(SOFTMAX, one_hot(5), policy="exp", gamma="0.7", momentum="0.5"),
    "policy poly": classifier(SOFTMAX, one_hot(5), policy="poly", power="2", max_batches="10"),
    "policy sigmoid": classifier(SOFTMAX, one_hot(5), policy="sigmoid", gamma="0.5", step="3"),
    "policy sgdr": classifier(SOFTMAX, one_hot(5), policy="sgdr", sgdr_cycle="2", learning_rate_min="0.001"),
    "burn_in": classifier(SOFTMAX, one_hot(5), policy="steps", steps="1,3", scales=".5,.5", burn_in="3", power="2"),
    "subdivisions": classifier(SOFTMAX, one_hot(5), subdivisions="2"),
    "patched batch norm": patched(conv(8, more=NORM) + POOL + conv(8, stride=2, activation="mish", more=NORM + "groups=4\n")),
    "patched shortcut": patched(conv(8) + conv(8) + "[shortcut]\nfrom=-2\nactivation=leaky\n" + conv(6)),
    "patched shortcut of fewer channels": patched(conv(6) + conv(8) + "[shortcut]\nfrom=-2\nactivation=linear\n" + conv(6)),
    "patched shortcut of three": patched(conv(8) + conv(8) + conv(8) + "[shortcut]\nfrom=-2,-3\nactivation=swish\n" + conv(6)),
    "patched cross-stage parts": patched(CSP),
    "patched spatial pyramid": patched(SPP),
    "patched squeeze": patched(SQUEEZE),
    "patched sam": patched(conv(8) + conv(8, activation="logistic") + "[sam]\nfrom=-2\nactivation=linear\n" + conv(4)),
    "patched batchnorm relu6": patched(conv(8, activation="relu6") + "[batchnorm]\n[activation]\nactivation=leaky\n" + conv(4)),
    "patched local": patched(conv(4, stride=2) + "[local]\nfilters=3\nsize=3\nstride=2\npad=1\nactivation=leaky\n" + conv(4)),
    "patched reorg": patched(conv(8) + "[reorg]\nstride=2\n" + conv(4)),
    "patched implicit": patched(conv(8) + AVERAGE + "[implicit]\nfilters=8\natoms=1\n[shortcut]\nfrom=-2\nactivation=linear\n"),
    "patched connected": DarknetRun(
        conv(4, stride=2) + "[connected]\noutput=9\nactivation=leaky\n[connected]\noutput=5\nactivation=linear\n" + SOFTMAX,
        one_hot(5), patched=True,
    ),
    "patched two heads": DarknetRun(PYRAMID, boxes(4), {"learning_rate": "0.0005"}, patched=True),
    "connected detection": DarknetRun(
        conv(6, stride=2) + POOL + CONNECTED.format(20, "leaky") + CONNECTED.format(117, "linear") + CELLS, cells
    ),
    "local detection": DarknetRun(conv(6, stride=2) + POOL + LOCAL + CONNECTED.format(117, "linear") + CELLS, cells),
    "avgpool convolution": DarknetRun(conv(4, stride=2) + AVERAGE + conv(5, 1, 1, "linear") + SOFTMAX, one_hot(5)),
    "yolo sigmas": DarknetRun(
        yolo("iou_loss=ciou").body, boxes(4), DETECTOR | {"num_sigmas_reject_badlabels": "2", "max_batches": "2"}
    ),
    "upsample": DarknetRun(
        conv(4, stride=2) + "[upsample]\nstride=2\nscale=0.5\n" + conv(6) + "[upsample]\nstride=-2\n" + conv(5, 1, 1, "linear")
        + AVERAGE + SOFTMAX, one_hot(5)
    ),
    "windows": DarknetRun(
        conv(6, more="dilation=2\n") + "[maxpool]\nsize=3\nstride=1\n" + conv(4, 4, 2)
        + "[maxpool]\nsize=3\nstride_x=2\npadding=1\n" + conv(6, activation="mish", more="groups=2\nstride_y=2\n")
        + "[maxpool]\nmaxpool_depth=1\nout_channels=5\n" + AVERAGE + SOFTMAX,
        one_hot(5),
    ),
}  # fmt: skip
