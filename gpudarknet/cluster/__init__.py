"""Detection on many machines, with Ray: any number of images, every image exactly once.

    from gpudarknet import cluster

    cluster.detect("photos", "found", "yolov4.cfg", "yolov4.weights", "coco.names")

`detect.py` drives a job: `shards.py` cuts the source into shards, `worker.py` turns each into one file of rows (`rows.py`), in a
folder (`store.py`) that belongs to one job (`job.py`). `runtime.py` starts Ray and its workers. `batches.py` is for pipelines of
others, such as Ray Data. Ray is imported only when a job starts: pip install 'gpudarknet[ray]'.
"""

from .batches import Detect
from .detect import detect
from .job import Summary
from .merge import merge, read

__all__ = ["Detect", "Summary", "detect", "merge", "read"]
