"""Train a network as Darknet does.

    trainer = Trainer(net)
    cost = trainer.step(x, truth)       # x (N, C, H, W), truth (N, truths): one iteration (step.py)
    trainer.fit("x.data", "backup")     # or the whole training (loop.py)

All randomness derives from (seed, iteration), so a run that is stopped and resumed continues bit-exactly.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..data import DataSet
from ..data.datafile import DataFile
from ..errors import TrainError, TrainWarning
from . import checkpoint
from .datasets import training_set
from .loop import Progress, TrainingRun
from .step import TrainStep, backward

__all__ = ["Progress", "TrainStep", "Trainer", "TrainingRun", "backward"]


class Trainer(TrainStep):
    """A network in training: `step` runs one iteration, `fit` a whole training, `save` and `load` its state.

    It starts at iteration 0; with clear=False, at the image count of the weights. exact: IoU losses return their true gradient
    where Darknet's delta differs; iou_normalizer then has to be larger, as the gradient is with respect to coordinates
    relative to the image. `momentum[i][name]` is the accumulated negative gradient of a weight, as in Darknet.

    precision: with fp16, maps and deltas are stored as float16; arithmetic, weights, their gradients and batch norm's
    statistics stay float32. [net] loss_scale multiplies the deltas; at its default 1 the scale is dynamic: it is halved if a
    gradient overflows, and that step is skipped.

    emulate_darknet_cpu_bugs: train [avgpool], [connected] and [local] as incorrectly as Darknet's CPU build does
    (darknet_cpu_bugs.py), to compare `step` with its results; in fp32 only, and not for `fit`.

    tune_malloc: with NumPy, make malloc of the GNU C library keep freed memory, in the whole process and for good: every step
    needs what the last one freed, and getting it from the system again takes up to a fifth of a step. False leaves malloc as
    it is. Raises TrainError, CfgError.
    """

    def fit(
        self, data: DataSet | DataFile | str | Path, folder: str | Path = "backup", base: str = "",
        resume: str | Path | None = None, iterations: int | None = None, **options: Any,
    ) -> Progress | None:  # fmt: skip
        """Train until max_batches, or for a number of iterations; write base_last.weights and other files to `folder`.

        data: a `data.DataSet`, a .data file or its path. base: the cfg's name by default. resume: a checkpoint,
        base_last.weights or .npz, to resume bit-exactly. The other options are those of `loop.TrainingRun`. Returns the last
        Progress.
        """
        if self.cpu_bugs:
            raise TrainError(
                "Trainer.fit: does not emulate bugs of Darknet's CPU build; omit emulate_darknet_cpu_bugs, or call step"
            )
        if resume is not None:
            path = checkpoint.state_path(resume)
            if not path.is_file():
                raise TrainError(f"{path}: does not exist, so training cannot be resumed; check the path")
            options["extra"] = self.load(path)
        data = DataFile.read(data) if isinstance(data, str | Path) else data
        data = training_set(data, self.net) if isinstance(data, DataFile) else data
        run = TrainingRun(self, data, folder, base or Path(self.net.config.path).stem, **options)
        return run.run(iterations)

    def save(self, path: str | Path, extra: Mapping[str, ArrayLike] | None = None) -> None:
        """Write the state and `extra` arrays to an .npz file, atomically."""
        checkpoint.write(path, self.state_dict(), extra)

    def load(self, path: str | Path) -> dict[str, np.ndarray]:
        """Restore what `save` wrote; return its extra arrays. Raises TrainError if the file is of another network."""
        state, extra = checkpoint.read(path)
        self.load_state_dict(state, path)
        return extra

    def resume(self, weights: str | Path) -> dict[str, np.ndarray]:
        """Restore the state saved next to the weights that were loaded, if available; return its extra arrays.

        The state contains the weights too: one newer than the weights file, from a run stopped between the two writes, is
        used; an older one belongs to other weights and is ignored, with a TrainWarning.
        """
        path = checkpoint.state_path(weights)
        if not path.is_file():
            if self.iteration:
                warnings.warn(f"{path}: does not exist; momentum starts at 0", TrainWarning, stacklevel=2)
            return {}
        state, extra = checkpoint.read(path)
        if int(state.get("seen", 0)) < self.net.seen:
            warnings.warn(
                f"{path}: is older than {weights} and is ignored; momentum starts at 0", TrainWarning, stacklevel=2
            )
            return {}
        self.load_state_dict(state, path)
        return extra
