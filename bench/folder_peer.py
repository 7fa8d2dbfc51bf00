"""The loop that `bench.folder` compares with; it needs only OpenCV 4, which reads Darknet's files.

    python bench/folder_peer.py FOLDER x.cfg x.weights [OUT]

cv2.imread, cv2.dnn, NMS; with OUT, boxes are drawn and images written there. Prints the number of objects.
"""

import os
import sys

import cv2
import numpy as np

THRESH, NMS = 0.25, 0.45


def main(folder, cfg, weights, out=None):
    """Detect objects in all images of a folder, one after the other."""
    net = cv2.dnn.readNetFromDarknet(cfg, weights)
    heads, size = net.getUnconnectedOutLayersNames(), (416, 416)
    objects = 0
    for name in sorted(os.listdir(folder)):
        image = cv2.imread(os.path.join(folder, name))
        H, W = image.shape[:2]
        net.setInput(cv2.dnn.blobFromImage(image, 1 / 255, size, swapRB=True))
        rows = np.concatenate(net.forward(heads))
        scores = rows[:, 5:]
        k, c = np.nonzero(scores > THRESH)
        boxes = rows[k, :4] * (W, H, W, H)
        boxes[:, :2] -= boxes[:, 2:] / 2
        kept = cv2.dnn.NMSBoxesBatched(boxes, scores[k, c], c, THRESH, NMS)
        objects += len(kept)
        if out:
            for left, top, width, height in boxes[kept].astype(int).tolist():
                cv2.rectangle(image, (left, top), (left + width, top + height), (0, 255, 0), 2)
            cv2.imwrite(os.path.join(out, name), image)
    print(objects)


if __name__ == "__main__":
    main(*sys.argv[1:])
