"""Seven scripts in the style of public tutorials, written against OpenCV 4's cv2.dnn, and the networks they run.

Every script takes the module that it would import as `dnn`. `make record-opencv4` runs this file under OpenCV 4, which writes the
results to tests/opencv4.json.

test_cv2dnn.py runs the same scripts on gpudarknet.cv2dnn and compares.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import cv2
import numpy as np

RECORD = Path(__file__).with_suffix(".json")
CONV = "[convolutional]\nbatch_normalize={bn}\nfilters={f}\nsize={k}\nstride={s}\npad=1\nactivation={a}\n\n"


def conv(f, k=3, s=1, a="leaky", bn=1):
    return CONV.format(f=f, k=k, s=s, a=a, bn=bn)


NET = "[net]\nwidth={}\nheight={}\nchannels=3\n\n"
YOLO = "[yolo]\nmask={}\nanchors=10,14, 23,27, 37,58, 81,82, 60,40, 90,70\nclasses=4\nnum=6\n{}\n"
CFGS = {
    "tiny": NET.format(96, 64) + conv(8) + "[maxpool]\nsize=2\nstride=2\n" + conv(16) + conv(16)
    + "[route]\nlayers=-1\ngroups=2\ngroup_id=1\n" + conv(8) + "[route]\nlayers=-1,-2\n"
    + conv(16, s=2) + conv(8, k=1, a="mish") + conv(16, s=2, a="swish") + conv(16, k=1)
    + "[maxpool]\nsize=2\nstride=1\n" + conv(27, k=1, a="linear", bn=0) + YOLO.format("3,4,5", "")
    + "[route]\nlayers=-4\n" + conv(8, k=1) + "[upsample]\nstride=2\n[route]\nlayers=-1,8\n"
    + conv(27, k=1, a="linear", bn=0) + YOLO.format("0,1,2", "scale_x_y=1.05\n"),
    "csp": NET.format(64, 96) + conv(8, s=2, a="mish") + conv(8, k=1, a="mish") + conv(8, a="mish")
    + "[shortcut]\nfrom=-3\nactivation=linear\n" + "[avgpool]\n" + conv(8, k=1, a="logistic", bn=0)
    + "[scale_channels]\nfrom=-3\nactivation=linear\n" + conv(8, s=2)
    + conv(27, k=1, a="logistic", bn=0) + YOLO.format("0,1,2", "new_coords=1\nscale_x_y=2.0\n"),
    "v2": NET.format(96, 64) + conv(8) + "[maxpool]\nsize=2\nstride=2\n" + conv(8, s=2)
    + conv(16, s=2) + "[route]\nlayers=-2\n[reorg]\nstride=2\n[route]\nlayers=-1,-3\n"
    + conv(45, k=1, a="linear", bn=0)
    + "[region]\nanchors=0.6,0.7, 1.9,2.1, 3.3,5.5, 2.9,3.5, 1.8,0.9\nclasses=4\ncoords=4\nnum=5\nsoftmax=1\nthresh=.3\n",
    "classes": NET.format(64, 64) + conv(8) + "[maxpool]\nsize=2\nstride=2\n" + conv(16, s=2)
    + conv(10, k=1, a="linear", bn=0) + "[avgpool]\n[softmax]\ngroups=1\n[cost]\ntype=sse\n",
}  # fmt: skip


def write(folder):
    """Write every cfg and its weights."""
    for name, text in CFGS.items():
        (folder / f"{name}.cfg").write_text(text)
        (folder / f"{name}.weights").write_bytes(weights_of(text))


def weights_of(text):
    """Return the content of a cfg's weights file, random with a fixed seed."""
    from gpudarknet import cfg, graph

    rng = np.random.default_rng(len(text))
    content = [np.array([0, 2, 5, 0, 0], "<i4").tobytes()]
    for node in graph.build(cfg.parse(text)):
        for kind, shape, _ in node.layer.weights(*node.inputs):
            spread = 1.6 / np.sqrt(np.prod(shape[1:])) if kind == "kernel" else 0.2
            base = 1.0 if kind in ("scale", "variance") else 0.0
            a = base + rng.uniform(-1.7, 1.7, shape) * min(spread, 1.0)
            content.append(np.maximum(a, 0.4 if base else -9).astype("<f4").tobytes())
    return b"".join(content)


def scene():
    """Draw an image with colored shapes and noise (H, W, 3), BGR.

    Without noise, neighboring cells get the same input in flat areas, and rounding decides which of their boxes NMS keeps.
    """
    image = np.full((120, 200, 3), 90, np.uint8)
    cv2.rectangle(image, (20, 30), (90, 100), (30, 60, 220), -1)
    cv2.circle(image, (140, 60), 40, (220, 120, 20), -1)
    cv2.line(image, (0, 110), (199, 5), (40, 230, 40), 5)
    noise = np.random.default_rng(1).integers(-30, 31, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def yolov3_by_hand(dnn, folder):
    """Parse rows by hand, with NMSBoxes: the tutorial of 2018."""
    frame = scene()
    net = dnn.readNetFromDarknet(str(folder / "tiny.cfg"), str(folder / "tiny.weights"))
    net.setPreferableBackend(dnn.DNN_BACKEND_OPENCV)
    net.setPreferableTarget(dnn.DNN_TARGET_CPU)
    layer_names = net.getLayerNames()
    output_layers = [layer_names[i - 1] for i in net.getUnconnectedOutLayers()]
    blob = dnn.blobFromImage(frame, 1 / 255.0, (96, 64), (0, 0, 0), True, crop=False)
    net.setInput(blob)
    outs = net.forward(output_layers)
    class_ids, confidences, boxes = [], [], []
    for out in outs:
        for detection in out:
            scores = detection[5:]
            class_id = np.argmax(scores)
            confidence = scores[class_id]
            if confidence > 0.7:
                center_x = int(detection[0] * frame.shape[1])
                center_y = int(detection[1] * frame.shape[0])
                w = int(detection[2] * frame.shape[1])
                h = int(detection[3] * frame.shape[0])
                boxes.append([center_x - w // 2, center_y - h // 2, w, h])
                confidences.append(float(confidence))
                class_ids.append(int(class_id))
    detections = []
    for i in np.array(dnn.NMSBoxes(boxes, confidences, 0.7, 0.4)).flatten():
        detections.append([class_ids[i], confidences[i], boxes[i]])
    return {"names": list(layer_names), "outputs": output_layers, "detections": detections}


def other_size_and_batch(dnn, folder):
    """Read from buffers, run two images at once, at a size that is not the cfg's."""
    cfg, weights = (np.fromfile(folder / f"tiny.{kind}", np.uint8) for kind in ("cfg", "weights"))
    net = dnn.readNetFromDarknet(cfg, weights)
    frame = scene()
    blob = dnn.blobFromImages([frame, frame[:, ::-1].copy()], 1 / 255.0, (128, 96), swapRB=True)
    net.setInput(blob)
    outs = net.forward(net.getUnconnectedOutLayersNames())
    detections = []
    for out in outs:
        for rows in out:
            best = rows[np.argsort(-rows[:, 5:].max(axis=1), kind="stable")[:3]]
            for row in best:
                detections.append(
                    [int(row[5:].argmax()), float(row[5:].max()), (row[:4] * [200, 120, 200, 120]).tolist()]
                )
    return {"shapes": [list(out.shape) for out in outs], "detections": detections}


def detection_model(dnn, folder):
    """Use DetectionModel: the tutorial of 2020."""
    model = dnn.DetectionModel(str(folder / "csp.weights"), str(folder / "csp.cfg"))
    model.setInputParams(size=(64, 96), scale=1 / 255, swapRB=True)
    classes, scores, boxes = model.detect(scene(), 0.3, 0.4)
    detections = [[int(c), float(s), [int(v) for v in box]] for (c, s, box) in zip(classes, scores, boxes, strict=True)]
    return {"detections": detections}


def detection_model_from_net(dnn, folder):
    """Use DetectionModel with a net, NMS across classes and a mean."""
    net = dnn.readNet(str(folder / "tiny.weights"), str(folder / "tiny.cfg"))
    model = dnn.DetectionModel(net)
    model.setInputSize(96, 64)
    model.setInputScale(1 / 255)
    model.setInputMean((5, 10, 15))
    model.setInputSwapRB(True)
    model.setNmsAcrossClasses(True)
    classes, scores, boxes = model.detect(scene(), confThreshold=0.65, nmsThreshold=0.3)
    detections = [[int(c), float(s), [int(v) for v in box]] for (c, s, box) in zip(classes, scores, boxes, strict=True)]
    return {"detections": detections}


def yolov2(dnn, folder):
    """Run a network with reorg and region, and inspect its layers."""
    net = dnn.readNetFromDarknet(str(folder / "v2.cfg"), str(folder / "v2.weights"))
    net.setInput(dnn.blobFromImage(scene(), 1 / 255.0, (96, 64), swapRB=True))
    out = net.forward()
    reorg = net.forward("reorg_5")
    rows = out[np.argsort(-out[:, 5:].max(axis=1), kind="stable")[:6]]
    detections = [[int(r[5:].argmax()), float(r[5:].max()), (r[:4] * [200, 120, 200, 120]).tolist()] for r in rows]
    layers = [net.getLayer(i) for i in range(1, len(net.getLayerNames()) + 1)]
    return {
        "names": list(net.getLayerNames()), "types": [layer.type for layer in layers],
        "blobs": [[list(b.shape) for b in layer.blobs] for layer in layers],
        "suppressed": int((out[:, 5:] == 0).sum()), "reorg": reorg[0, ::7, 1, 2].tolist(), "detections": detections,
    }  # fmt: skip


def classifier(dnn, folder):
    """Classify, by hand and with ClassificationModel."""
    net = dnn.readNetFromDarknet(str(folder / "classes.cfg"), str(folder / "classes.weights"))
    net.setInput(dnn.blobFromImage(scene(), 1 / 255.0, (64, 64), swapRB=True))
    prob = net.forward()
    model = dnn.ClassificationModel(str(folder / "classes.weights"), str(folder / "classes.cfg"))
    model.setInputParams(scale=1 / 255.0, size=(64, 64), swapRB=True)
    class_id, confidence = model.classify(scene())
    return {"names": list(net.getLayerNames()), "shape": list(prob.shape), "probabilities": prob.ravel().tolist(),
            "detections": [[int(class_id), float(confidence), []]]}  # fmt: skip


def opencv_sample(dnn, folder, model="tiny.weights", config="tiny.cfg", framework=None):
    """Make the calls of OpenCV's own sample, samples/dnn/object_detection.py, for any framework."""
    frame = scene()
    height, width = frame.shape[:2]
    net = dnn.readNet(str(folder / model), str(folder / config), framework)
    net.setPreferableBackend(dnn.DNN_BACKEND_DEFAULT)
    net.setPreferableTarget(dnn.DNN_TARGET_CPU)
    blob = dnn.blobFromImage(frame, size=(96, 64), swapRB=True, ddepth=cv2.CV_8U)
    net.setInput(blob, scalefactor=1 / 255.0, mean=[0, 0, 0])
    faster_rcnn = net.getLayer(0).outputNameToIndex("im_info") != -1
    outs = net.forward(net.getUnconnectedOutLayersNames())
    try:
        net.forwardAsync()
        is_async = True
    except cv2.error:
        is_async = False
    last = net.getLayer(net.getLayerId(net.getLayerNames()[-1]))
    class_ids, confidences, boxes = [], [], []
    if last.type == "Region":
        for out in outs:
            for row in out:
                class_id = np.argmax(row[5:])
                if row[5 + class_id] > 0.7:
                    cx, cy, w, h = (int(v) for v in row[:4] * [width, height, width, height])
                    class_ids.append(int(class_id))
                    confidences.append(float(row[5 + class_id]))
                    boxes.append([int(cx - w / 2), int(cy - h / 2), w, h])
    ticks, _ = net.getPerfProfile()
    kept = np.array(dnn.NMSBoxes(boxes, confidences, 0.7, 0.4)).flatten()
    return {
        "type": last.type, "faster_rcnn": faster_rcnn, "async": is_async, "ticks": type(ticks).__name__,
        "detections": [[class_ids[i], confidences[i], boxes[i]] for i in kept],
    }  # fmt: skip


SCRIPTS = (
    opencv_sample,
    yolov3_by_hand,
    other_size_and_batch,
    detection_model,
    detection_model_from_net,
    yolov2,
    classifier,
)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        record = {script.__name__: script(cv2.dnn, Path(folder)) for script in SCRIPTS}
    RECORD.write_text(json.dumps({"opencv": cv2.__version__, **record}, indent=None) + "\n")
    print({name: len(r["detections"]) for name, r in record.items()})
