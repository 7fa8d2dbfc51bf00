"""mAP against Darknet's algorithm written as loops, COCO's AP on known cases, recall, anchors, result files."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import seeded

import gpudarknet as gd
from gpudarknet import cfg, data, evaluate
from gpudarknet.boxes import iou
from gpudarknet.cli import main
from gpudarknet.data.datafile import DataFile
from gpudarknet.detector import Detector
from gpudarknet.errors import DataError, DataWarning, NothingMeasuredError, TrainWarning
from gpudarknet.evaluate import ImageEval, score_name, validation_score
from gpudarknet.inference import ScoredBoxes
from gpudarknet.train.datasets import training_set

NONE = np.zeros((0, 5), np.float32)


def random_images(seed=0, images=6, classes=3):
    """Draw truths, and detections: perturbed truths, duplicates and noise; probabilities have no ties."""
    rng = np.random.default_rng(seed)
    evals = []
    for n in range(images):
        truth = np.column_stack(
            [rng.uniform(0.2, 0.8, (5, 2)), rng.uniform(0.1, 0.3, (5, 2)), rng.integers(0, classes, 5)]
        )
        hits = np.concatenate([truth, truth[:3]])[:, :4] + rng.normal(0, 0.02, (8, 4))
        boxes = np.concatenate([hits, rng.uniform(0.1, 0.5, (4, 4))])
        probs = np.where(rng.random((12, classes)) < 0.4, rng.random((12, classes)), 0)
        probs[np.arange(5), truth[:, 4].astype(int)] = rng.uniform(0.2, 1, 5)
        evals.append(ImageEval(ScoredBoxes(boxes, probs, 100, 80), truth.astype(np.float32), NONE, f"/x/img_{n}.jpg"))
    return evals


def map_by_ranks(images, classes, iou_thresh, points, conf_thresh):
    """validate_detector_map written as loops: precision and recall of every class at every rank of one list."""
    candidates, truths, base = [], np.zeros(classes), 0
    tp, fp, total_iou = np.zeros(classes), np.zeros(classes), 0.0
    for img in images:
        for t in img.truth:
            truths[int(t[4])] += 1
        checkpoint = len(candidates)
        for i in range(len(img.scored.boxes)):
            for k in range(classes):
                p = img.scored.probs[i, k]
                if p == 0:
                    continue
                best, most = -1, 0.0
                for n, t in enumerate(img.truth):
                    like = float(iou(img.scored.boxes[i], t[:4]))
                    if like > iou_thresh and t[4] == k and like > most:
                        best, most = base + n, like
                candidates.append((p, k, best))
                if p > conf_thresh:
                    if best >= 0 and best not in [e[2] for e in candidates[checkpoint:-1]]:
                        tp[k] += 1
                        total_iou += most
                    else:
                        fp[k] += 1
        base += len(img.truth)
    candidates.sort(key=lambda e: -e[0])
    N, flags = len(candidates), set()
    P, R = np.zeros((N, classes)), np.zeros((N, classes))
    hit, miss = np.zeros(classes), np.zeros(classes)
    for rank, (_, k, t) in enumerate(candidates):
        if t >= 0 and t not in flags:
            flags.add(t)
            hit[k] += 1
        else:
            miss[k] += 1
        P[rank], R[rank] = hit / np.maximum(hit + miss, 1), hit / np.maximum(truths, 1)
    ap = np.zeros(classes)
    for k in range(classes):
        if points:
            for level in range(points):
                reached = R[:, k] >= level / (points - 1) - 1e-12
                ap[k] += (P[reached, k].max() if reached.any() else 0) / points
            continue
        last_r, last_p = R[N - 1, k], P[N - 1, k]
        for rank in range(N - 2, -1, -1):
            d, last_r = last_r - R[rank, k], R[rank, k]
            last_p = max(last_p, P[rank, k])
            ap[k] += d * last_p
        ap[k] += last_r * last_p
    return ap, tp, fp, truths, total_iou / max((tp + fp).sum(), 1)


@pytest.mark.parametrize("points", [0, 11, 101])
@pytest.mark.parametrize("iou_thresh", [0.5, 0.75])
def test_map_is_darknets(points, iou_thresh):
    images = random_images(classes=4)
    report = evaluate.mean_average_precision(images, 4, iou_thresh, points, 0.25)
    ap, tp, fp, truths, average = map_by_ranks(images, 4, iou_thresh, points, 0.25)
    np.testing.assert_allclose(report.ap, ap, rtol=1e-12)
    np.testing.assert_array_equal([report.tp, report.fp, report.truths], [tp, fp, truths])
    assert report.average_iou == pytest.approx(average)
    assert report.mean == pytest.approx(ap.mean()) and 0.1 < report.mean < 0.9
    assert report.precision == pytest.approx(tp.sum() / (tp + fp).sum())
    assert report.recall == pytest.approx(tp.sum() / truths.sum())


def test_the_area_uses_the_precision_at_the_left():
    """Hit, miss, hit with two truths: 1 * 1/2 + 2/3 * 1/2 by the definition; in Darknet the envelope at rank 2 is 2/3."""
    ranked = [(0.9, 0), (0.8, -1), (0.7, 1)]
    assert evaluate.average_precision(ranked, 2, 0) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    ranked = [(0.9, 0), (0.7, 1), (0.6, -1), (0.5, 2)]
    assert evaluate.average_precision(ranked, 3, 0) == pytest.approx(2 / 3 + 1 / 3 * 3 / 4)
    ranked = [(0.9, -1), (0.8, 0), (0.7, 1)]
    assert evaluate.average_precision(ranked, 2, 0) == pytest.approx(2 / 3)


def test_no_detection():
    empty = ScoredBoxes(np.zeros((0, 4)), np.zeros((0, 2)), 10, 10)
    img = ImageEval(empty, np.array([[0.5, 0.5, 0.1, 0.1, 1]], np.float32), NONE)
    report = evaluate.mean_average_precision([img], 2)
    assert (report.mean, report.precision, report.recall, report.f1, report.average_iou) == (0, 0, 0, 0, 0)
    with pytest.raises(DataError) as e:
        evaluate.mean_average_precision([img], 2, points=7)
    assert str(e.value) == "points=7: average precision is computed over 0 (the area), 11 or 101 points"


@pytest.mark.parametrize("measure", [lambda images: evaluate.mean_average_precision(images, 2), evaluate.recall])
def test_a_measurement_of_nothing_is_an_error(measure):
    img = ImageEval(ScoredBoxes(np.zeros((0, 4)), np.zeros((0, 2)), 10, 10), NONE, NONE)
    with pytest.raises(NothingMeasuredError) as e:
        measure([img, img])
    assert str(e.value) == "nothing is measured: the labels of 2 images have no object; check the labels"
    with pytest.raises(NothingMeasuredError) as e:
        measure([])
    assert str(e.value) == "nothing is measured: no image could be read; check the list of images"


def test_classes_without_truths():
    """They count as 0 in Darknet's mean; the mean of the others is known too."""
    images = random_images(classes=3)
    report, other = (evaluate.mean_average_precision(images, classes) for classes in (3, 5))
    assert other.absent == [3, 4] and report.absent == []
    assert other.mean_of_present == pytest.approx(report.mean) == report.mean_of_present
    assert other.mean == pytest.approx(report.mean * 3 / 5)


def test_difficult_boxes_are_not_counted():
    box = np.array([[0.5, 0.5, 0.2, 0.2]])
    truth = np.array([[0.2, 0.2, 0.1, 0.1, 0]], np.float32)
    scored = ScoredBoxes(box, np.array([[0.9]]), 10, 10)
    hard = np.array([[0.5, 0.5, 0.2, 0.2, 0]], np.float32)
    assert evaluate.mean_average_precision([ImageEval(scored, truth, NONE)], 1).fp.tolist() == [1]
    report = evaluate.mean_average_precision([ImageEval(scored, truth, hard)], 1)
    assert (report.fp.tolist(), report.detection_count) == ([0], 0)


def test_coco_of_perfect_and_perturbed_boxes():
    pytest.importorskip("faster_coco_eval")
    images = random_images(images=4)
    perfect = [
        ImageEval(ScoredBoxes(j.truth[:, :4], np.eye(3)[j.truth[:, 4].astype(int)], 400, 300), j.truth, NONE)
        for j in images
    ]
    scores, per_class = evaluate.coco(perfect, ["a", "b", "c"])
    assert scores["AP"] == pytest.approx(1) and per_class == pytest.approx([1, 1, 1])
    scores, per_class = evaluate.coco(images, ["a", "b", "c", "d"])
    assert 0 < scores["AP"] < scores["AP50"] < 1 and np.isnan(per_class[3])
    report = evaluate.mean_average_precision(images, 3, 0.5, 101)
    assert scores["AP50"] == pytest.approx(
        report.mean, abs=0.05
    )  # the same definition, different matching of duplicates
    tiny = [ImageEval(ScoredBoxes(j.scored.boxes, j.scored.probs, 30, 20), j.truth, NONE) for j in perfect]
    scores, _ = evaluate.coco(tiny, ["a", "b", "c"])
    assert scores["AP small"] == pytest.approx(1) and np.isnan(scores["AP medium"]) and np.isnan(scores["AP large"])


def test_recall():
    images = random_images()
    result = evaluate.recall(images, 0.5)
    best = [iou(j.truth[:, None, :4], j.scored.boxes).max(axis=1) for j in images]
    assert result.proposals == 12
    assert result.recall == pytest.approx(np.mean(np.concatenate(best) > 0.5))
    assert result.average_iou == pytest.approx(np.mean(np.concatenate(best)))


# The original program's results on eight images that have the network's input size

ORIGINAL = json.loads((Path(__file__).parent / "data" / "map.json").read_text())
BODY = """[net]
width=64
height=48
channels=3
[convolutional]
filters=8
size=3
stride=4
pad=1
activation=leaky
[convolutional]
filters=24
size=3
stride=2
pad=1
activation=linear
"""
HEADS = {
    "yolo": "[yolo]\nmask=0,1,2\nanchors=8,10, 14,20, 22,16, 30,34, 40,28, 44,46\nclasses=3\nnum=6\n",
    "region": "[region]\nanchors=0.8,1.1, 1.9,1.4, 2.6,3.1\nclasses=3\nnum=3\ncoords=4\nsoftmax=1\n",
}


def detector_and_images(head, folder):
    """Write cfg, weights, images and labels; return the detector and the images' paths."""
    (folder / "x.cfg").write_text(BODY + HEADS[head])
    net = gd.load_network(folder / "x.cfg", backend="numpy")
    weights = seeded.write_weights(net, folder / "x.weights", {"yolo": 3, "region": 4}[head], 2.0)
    paths = []
    for i, rows in enumerate(ORIGINAL[head]["labels"]):
        blocks = np.random.default_rng(100 + i).integers(0, 255, (6, 8, 3), dtype=np.uint8)
        paths.append(str(folder / f"i{i}.png"))
        cv2.imwrite(paths[-1], np.kron(blocks, np.ones((8, 8, 1), np.uint8)))
        (folder / f"i{i}.txt").write_text("".join(" ".join(map(str, row)) + "\n" for row in rows))
    return Detector(folder / "x.cfg", weights, ["a", "b", "c"], "numpy"), paths


@pytest.mark.parametrize("head", HEADS)
def test_map_is_the_original_programs(head, tmp_path):
    detector, paths = detector_and_images(head, tmp_path)
    images = list(evaluate.evaluate_images(detector, paths))
    for r in ORIGINAL[head]["map"]:
        report = evaluate.mean_average_precision(images, 3, r["iou_thresh"], r["points"], r["thresh"])
        assert [report.detection_count, report.truths.sum()] == r["counts"]
        assert [list(report.tp), list(report.fp)] == [r["right"], r["wrong"]]
        assert report.ap * 100 == pytest.approx(r["ap"], abs=0.006)  # printed with two digits
        assert report.mean == pytest.approx(r["mean"], abs=2e-6)
        assert report.average_iou * 100 == pytest.approx(r["average_iou"], abs=0.006)


# The same images and network with boxes that reach over the edge, and difficult ones, paired by position in the original

EDGES = json.loads((Path(__file__).parent / "data" / "map_edges.json").read_text())


@pytest.mark.parametrize(("kind", "key"), [("map", ""), ("map with difficult", "difficult=difficult.txt\n")])
def test_map_of_boxes_over_the_edge_is_the_original_programs(kind, key, tmp_path):
    """With `detector map` of the original program; difficult_i0.txt has the difficult boxes of i0.png and so on."""
    detector, paths = detector_and_images("yolo", tmp_path)
    for i, (rows, difficult) in enumerate(zip(EDGES["labels"], EDGES["difficult"], strict=True)):
        for name, boxes in (f"i{i}.txt", rows), (f"difficult_i{i}.txt", difficult):
            (tmp_path / name).write_text("".join(" ".join(map(str, row)) + "\n" for row in boxes))
    (tmp_path / "x.names").write_text("a\nb\nc\n")
    (tmp_path / "valid.txt").write_text("\n".join(paths))
    (tmp_path / "difficult.txt").write_text("\n".join(f"{tmp_path}/difficult_i{i}.png" for i in reversed(range(8))))
    (tmp_path / "x.data").write_text(f"classes=3\nvalid=valid.txt\nnames=x.names\n{key}")
    source = DataFile.read(tmp_path / "x.data")
    with pytest.warns(
        DataWarning, match="2 labels are wrong or missing, of 8 images, first .* is far larger than the image"
    ):
        valid = evaluate.validation_set(source, detector)
    with pytest.warns(DataWarning, match="^2 labels are wrong or missing, first .* is far larger than the image"):
        images = list(evaluate.evaluate_images(detector, valid.paths, difficult=valid.difficult))
    for r in EDGES[kind]:
        report = evaluate.mean_average_precision(images, 3, r["iou_thresh"], r["points"])
        assert [report.detection_count, report.truths.sum()] == r["counts"]
        assert report.ap * 100 == pytest.approx(r["ap"], abs=0.006)
        assert report.mean == pytest.approx(r["mean"], abs=2e-6)
    with pytest.warns(DataWarning):
        score = validation_score(source, detector.network, iou_thresh=0.3, points=11)
    assert score(detector.network) == report.mean


@pytest.mark.parametrize("head", HEADS)
def test_recall_is_the_original_programs(head, tmp_path):
    detector, paths = detector_and_images(head, tmp_path)
    images = evaluate.evaluate_images(
        detector, paths, evaluate.PROPOSAL_THRESH, evaluate.PROPOSAL_NMS, class_agnostic=True
    )
    result = evaluate.recall(images)
    assert (result.proposals, 100 * result.average_iou, 100 * result.recall) == pytest.approx(
        ORIGINAL[head]["recall"], abs=0.006
    )


def test_recall_of_region_does_not_depend_on_objectness(tmp_path):
    """`darknet detector recall` prints the same numbers for the same network with an objectness near 0: it sets it to 1."""
    detector, paths = detector_and_images("region", tmp_path)
    detector.network.weights[1]["bias"].reshape(3, 8)[:, 4] -= 9
    settings = evaluate.PROPOSAL_THRESH, evaluate.PROPOSAL_NMS
    result = evaluate.recall(evaluate.evaluate_images(detector, paths, *settings, class_agnostic=True))
    assert (result.proposals, 100 * result.average_iou, 100 * result.recall) == pytest.approx(
        ORIGINAL["region"]["recall"], abs=0.006
    )


# Anchors


def sizes(seed=1):
    rng = np.random.default_rng(seed)
    wanted = np.array([[10, 14], [40, 20], [60, 90]])
    boxes = np.concatenate([w * rng.uniform(0.9, 1.1, (30, 2)) for w in wanted])
    truth = np.column_stack([np.full((90, 2), 0.5), boxes / (200, 100), np.repeat([0, 2, 2], 30)])
    return wanted, truth


def test_anchors_are_the_centers_of_clusters():
    wanted, truth = sizes()
    anchors = evaluate.calc_anchors(truth, 3, 200, 100, seed=3)
    np.testing.assert_allclose(anchors.sizes, wanted, rtol=0.05)
    assert 0.85 < anchors.average_iou < 1 and anchors.counters.tolist() == [30, 0, 60]
    np.testing.assert_array_equal(anchors.sizes, evaluate.calc_anchors(truth, 3, 200, 100, seed=3).sizes)
    image = evaluate.draw_anchors(truth, anchors, 200, 100)
    assert image.shape == (500, 500, 3) and len(np.unique(image.reshape(-1, 3), axis=0)) >= 4
    assert evaluate.calc_anchors(truth, 3, 200, 100, seed=3, classes=5).counters.tolist() == [30, 0, 60, 0, 0]
    with pytest.raises(DataError) as e:
        evaluate.calc_anchors(truth[:2], 3, 200, 100)
    assert str(e.value) == "3 anchors need as many boxes of different sizes; the labels have 2"


def test_anchors_in_a_cfg():
    small = np.array([[0.3, 0.42], [9.6, 120.2]])
    assert evaluate.anchors_text(small, 416) == "0.3000,0.4200,  10,120"
    assert evaluate.anchors_text(small, 13) == "0.3000,0.4200, 9.6000,120.2000"


# Files


def test_the_number_in_an_image_name():
    names = ["/a/COCO_val2014_000000000042.jpg", "7.png", "a_b.png", "x_0.jpg", "000012"]
    assert [evaluate.coco_image_id(name) for name in names] == [42, 7, None, 0, 12]


def test_result_lines():
    scored = ScoredBoxes(
        np.array([[0.5, 0.5, 1.2, 0.5], [0.5, 0.5, 0.2, 0.2]]), np.array([[0.25, 0], [0, 0.5]]), 100, 80
    )
    img = ImageEval(scored, NONE, NONE, "/data/COCO_val2014_000000000042.jpg")
    assert list(evaluate.voc_lines(img, 0)) == [
        "COCO_val2014_000000000042 0.250000 1.000000 21.000000 100.000000 61.000000"
    ]
    assert list(evaluate.coco_results(img, (1, 90))) == [
        {"image_id": 42, "category_id": 1, "score": 0.25, "bbox": [0.0, 20.0, 100.0, 40.0]},
        {"image_id": 42, "category_id": 90, "score": 0.5, "bbox": [40.0, 32.0, 20.0, 16.0]},
    ]


def test_judge_reads_images_and_labels(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (30, 40, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    (tmp_path / "a.txt").write_text("1 0.5 0.5 0.2 0.2\n5 0.5 0.5 0.2 0.2\n")
    text = "[net]\nwidth=32\nheight=32\nchannels=3\n[convolutional]\nfilters=14\nsize=3\nstride=2\npad=1\nactivation=linear\n"
    net = cfg.parse(text + "[yolo]\nclasses=2\nnum=2\nanchors=8,9,20,18\n")
    detector, bad_samples, counted = Detector(net, None, ["a", "b"], "numpy"), data.BadSamples(), []
    paths = [str(tmp_path / "a.png"), str(tmp_path / "none.png")]
    images = list(
        evaluate.evaluate_images(
            detector, paths, 0.1, bad_samples=bad_samples, difficult=lambda p: p[:-3] + "txt", done=counted.append
        )
    )
    assert len(images) == 1 and counted == [1, 2]
    assert images[0].truth.tolist() == [[0.5, 0.5, pytest.approx(0.2), pytest.approx(0.2), 1]]
    assert len(images[0].difficult) == 1 and len(images[0].scored.boxes) > 0
    assert bad_samples.images[0].startswith(f"{paths[1]}: ") and len(bad_samples.labels) == 1
    assert evaluate.read_truths(paths, 2, bad_samples).shape == (1, 5)


def test_without_a_record_bad_samples_are_warned_of(tmp_path):
    """At the end, also if the caller stops early: a number is never quietly wrong."""
    detector, paths = detector_and_images("yolo", tmp_path)
    Path(paths[0]).unlink()
    Path(paths[1]).with_suffix(".txt").write_text("7 0.5 0.5 0.1 0.1\n")
    expected = [
        f"1 image cannot be read, first {paths[0]}: no such file; check the path",
        f"1 label is wrong or missing, first {Path(paths[1]).with_suffix('.txt')}:1: class 7 is not one of 0 to 2",
    ]
    with pytest.warns(DataWarning) as caught:
        images = list(evaluate.evaluate_images(detector, paths))
    assert [str(w.message) for w in caught] == expected and len(images) == len(paths) - 1
    with pytest.warns(DataWarning) as caught:
        evaluation = evaluate.evaluate_images(detector, paths)
        next(evaluation)
        evaluation.close()
    assert [str(w.message) for w in caught] == expected
    with pytest.warns(DataWarning, match=expected[1]):
        evaluate.read_truths(paths[1:], 3)


# Classifiers with a tree of classes

TREE = "animal -1\nthing -1\ncat 0\ndog 0\ncup 1\nbox 1\npen 1\npuppy 3\nhound 3\n"


def tree_classifier(folder):
    """Write the cfg, weights, 40 images and lists of a classifier of nine classes; return the network."""
    (folder / "x.tree").write_text(TREE)
    names = [line.split()[0] for line in TREE.splitlines()]
    (folder / "x.names").write_text("".join(f"{name}_\n" for name in names))
    (folder / "some.leaves").write_text("cat\npuppy\nthing\ncup\n")
    (folder / "x.cfg").write_text(
        "[net]\nwidth=24\nheight=24\nchannels=3\nbatch=2\nmax_batches=2\n[convolutional]\nfilters=9\nsize=3\nstride=4\n"
        "activation=linear\n[avgpool]\n[softmax]\ntree=x.tree\n"
    )
    net = gd.load_network(folder / "x.cfg", backend="numpy")
    net = gd.load_network(folder / "x.cfg", seeded.write_weights(net, folder / "x.weights", 7, 3.0), "numpy")
    rng, paths = np.random.default_rng(0), []
    for n in range(40):
        paths.append(f"{names[int(rng.integers(9))]}_{n}.png")
        blocks = np.random.default_rng(100 + n).integers(0, 255, (3, 3, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / paths[-1]), np.kron(blocks, np.ones((8, 8, 1), np.uint8)))
    (folder / "valid.txt").write_text("\n".join(paths))
    return net


@pytest.mark.parametrize(
    ("keys", "top1", "top", "top_k"),
    [("", 0.1, 1, 0.1), ("top=3\n", 0.1, 3, 0.375), ("top=2\nleaves=some.leaves\n", 0.05, 2, 0.2)],
)
def test_accuracy_among_leaves_is_the_original_programs(tmp_path, monkeypatch, capsys, keys, top1, top, top_k):
    """With `classifier valid` of the original program."""
    net = tree_classifier(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("x.data").write_text(f"classes=9\nvalid=valid.txt\nlabels=x.names\n{keys}")
    seen = []
    score = validation_score(DataFile.read("x.data"), net, report=seen.append)
    assert score(net) == pytest.approx(top_k)
    assert (seen[0].images, seen[0].top, seen[0].top1) == (40, top, pytest.approx(top1))
    assert score_name(DataFile.read("x.data"), net) == f"top-{top} accuracy"
    assert main(["classifier", "valid", "x.data", "x.cfg", "x.weights", "-backend", "numpy"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"40 images, top 1: {top1:f}, top {top}: {top_k:f}"
    assert out[1].endswith(" of them have a class that is not a leaf of the tree and count as wrong")


def test_a_top_of_all_classes_is_not_a_score(tmp_path):
    net = tree_classifier(tmp_path)
    (tmp_path / "x.data").write_text("valid=valid.txt\nlabels=x.names\ntop=9\n")
    with pytest.warns(DataWarning, match=r"x.data: top=9 would count every image .*; the score is the top-1 accuracy$"):
        score = validation_score(DataFile.read(tmp_path / "x.data"), net)
    assert score(net) == pytest.approx(0.1)
    assert score_name(DataFile.read(tmp_path / "x.data"), net) == "top-1 accuracy"


def test_a_top_of_all_leaves_is_not_a_score(tmp_path):
    net = tree_classifier(tmp_path)
    (tmp_path / "x.data").write_text("valid=valid.txt\nlabels=x.names\nleaves=some.leaves\ntop=4\n")
    assert (
        score_name(DataFile.read(tmp_path / "x.data"), net) == "top-1 accuracy"
    )  # there are four leaves, of nine classes
    (tmp_path / "x.data").write_text("valid=valid.txt\nlabels=x.names\nleaves=some.leaves\ntop=3\n")
    assert score_name(DataFile.read(tmp_path / "x.data"), net) == "top-3 accuracy"


def test_folders_named_as_inner_classes(tmp_path):
    """An image in animal_/dog_ is one of a dog: the same accuracy as without folders, and no warning."""
    net = tree_classifier(tmp_path)
    tree = net.nodes[-1].layer.tree
    names = (tmp_path / "x.names").read_text().split()
    paths = []
    for path in (tmp_path / "valid.txt").read_text().split():
        folders = [names[k] for k in tree.ancestors(names.index(path.partition("_")[0] + "_"))]
        folder = tmp_path.joinpath(*folders[::-1])
        folder.mkdir(parents=True, exist_ok=True)
        paths.append((tmp_path / path).rename(folder / path))
    (tmp_path / "valid.txt").write_text("".join(f"{path}\n" for path in paths))
    (tmp_path / "x.data").write_text("train=valid.txt\nvalid=valid.txt\nlabels=x.names\ntop=3\n")
    source = DataFile.read(tmp_path / "x.data")
    assert validation_score(source, net)(net) == pytest.approx(0.375)
    data = training_set(source, net)
    truth = data.augment.truth(
        data.boxes(str(next(p for p in paths if "puppy" in p.name)), data.bad_samples)[:, 4].astype(int)
    )
    assert truth.tolist() == [1, 0, 0, 1, -1234, -1234, -1234, 1, 0]  # animal, dog, puppy


def test_a_cost_after_a_tree(tmp_path):
    tree_classifier(tmp_path)
    (tmp_path / "x.data").write_text("train=valid.txt\nlabels=x.names\n")
    text = (tmp_path / "x.cfg").read_text()
    (tmp_path / "x.cfg").write_text(text + "[cost]\ntype=sse\n")
    line = (text + "[cost]").count("\n") + 2
    with pytest.warns(
        TrainWarning, match=rf"x.cfg:{line}: \[cost\] also learns .* whose truth is -1234; set type=masked$"
    ):
        training_set(DataFile.read(tmp_path / "x.data"), gd.load_network(tmp_path / "x.cfg"))
    (tmp_path / "x.cfg").write_text(text + "[cost]\ntype=masked\n")
    training_set(DataFile.read(tmp_path / "x.data"), gd.load_network(tmp_path / "x.cfg"))


def test_leaves_that_the_tree_does_not_have(tmp_path):
    net = tree_classifier(tmp_path)
    (tmp_path / "some.leaves").write_text(" cat \npuppy\ncow\nthing\ncup\nPen\n")
    (tmp_path / "x.data").write_text("valid=valid.txt\nlabels=x.names\ntop=2\nleaves=some.leaves\n")
    with pytest.warns(
        DataWarning, match=r"x.data: 2 of the 6 names in some.leaves are not in .*x.cfg's tree, first 'cow'$"
    ):
        score = validation_score(DataFile.read(tmp_path / "x.data"), net)
    assert score(net) == pytest.approx(0.2)  # as with the four others
    (tmp_path / "some.leaves").write_text("cow\n")
    (tmp_path / "x.data").write_text("valid=valid.txt\nlabels=x.names\nleaves=some.leaves\n")
    with pytest.raises(DataError, match=r"x.data: none of the names in some.leaves is one of .*x.cfg's tree$"):
        validation_score(DataFile.read(tmp_path / "x.data"), net)
