"""Run and train Darknet (YOLO) networks: CUDA kernels and cuBLAS through CuPy, NumPy without a GPU.

import gpudarknet as gd
net = gd.load_network("yolov4-tiny.cfg", "yolov4-tiny.weights")
det = gd.Detector("yolov4-tiny.cfg", "yolov4-tiny.weights", "coco.names")
det.detect("photo.jpg")
"""

from . import backend, export
from .backend.threads import get_num_threads, set_num_threads
from .detections import Detection, Detections
from .detector import Detector
from .image_sources import sources
from .network import Network, load_network
from .train import Trainer

__version__ = "0.1.0"
__all__ = [
    "Detection", "Detections", "Detector", "Network", "Trainer", "__version__", "backend", "export", "get_num_threads",
    "load_network", "set_num_threads", "sources",
]  # fmt: skip
