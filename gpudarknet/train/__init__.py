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

from ..data import BadSamples, DataSet, warned
from ..data.datafile import DataFile
from ..errors import TrainError, TrainWarning
from . import checkpoint
from .datasets import training_set
from .engines import backward
from .folder import TrainingFolder
from .loop import Progress, TrainingRun
from .step import TrainStep

__all__ = ["Progress", "TrainStep", "Trainer", "TrainingFolder", "TrainingRun", "backward"]


class Trainer(TrainStep):
    """A network in training: `step` runs one iteration, `fit` a whole training, `save` and `load` its state.

    It starts at iteration 0; with clear=False, at the image count of the weights. seed: None means 0 or, after `resume`, the
    checkpoint's; a number is used after `resume` too. exact: IoU losses return their true gradient
    where Darknet's delta differs; iou_normalizer then has to be larger, as the gradient is with respect to coordinates
    relative to the image. `momentum[i][name]` is the accumulated negative gradient of a weight, as in Darknet.

    engine: on a CPU, in fp32, "plan" compiles the step; "reference" runs layer by layer, as on a GPU, and defines the result.
    `trainer.engine.name` says which runs. The arrays of the network's weights become views of one vector.

    precision: with fp16, maps and deltas are stored as float16; arithmetic, weights, their gradients and batch norm's
    statistics stay float32. [net] loss_scale multiplies the deltas; at its default 1 the scale is dynamic: it is halved if a
    gradient overflows, and that step is skipped.

    emulate_darknet_cpu_bugs: train [avgpool], [connected] and [local] as incorrectly as Darknet's CPU build does
    (darknet_cpu_bugs.py), to compare `step` with its results; in fp32 only, and not for `fit`.

    tune_malloc: with NumPy, make malloc of the GNU C library keep freed memory, in the whole process and for good: where it
    runs layer by layer, every step needs what the last one freed. False leaves malloc as it is. Raises TrainError, CfgError.
    """

    def fit(
        self, data: DataSet | DataFile | str | Path, folder: str | Path | TrainingFolder = "backup", base: str = "",
        resume: str | Path | None = None, iterations: int | None = None, **options: Any,
    ) -> Progress | None:  # fmt: skip
        """Train until max_batches, or for a number of iterations; write base_last.weights and other files to `folder`.

        data: a `data.DataSet`, a .data file or its path. base: the cfg's name by default. resume: a checkpoint,
        base_last.weights or .npz, to resume as `resume` does. The other options are those of `loop.TrainingRun`. Samples of a
        .data file that cannot be used are listed in `folder`. Returns the last Progress. Raises TrainError before the data is
        read if `folder` cannot be written or another training writes the same files. SIGTERM and SIGHUP are handled as
        Ctrl-C; after the checkpoint they raise SystemExit.
        """
        if self.cpu_bugs:
            raise TrainError(
                "Trainer.fit: does not emulate bugs of Darknet's CPU build; omit emulate_darknet_cpu_bugs, or call step"
            )
        if not isinstance(folder, TrainingFolder):
            folder = TrainingFolder(folder, base or Path(self.net.config.path).stem)
        if not folder.is_open:
            with folder:
                return self.fit(data, folder, resume=resume, iterations=iterations, **options)
        if resume is not None:
            self.resume(resume)
        data = DataFile.read(data) if isinstance(data, str | Path) else data
        with warned(BadSamples(folder.path)) as samples:
            data = training_set(data, self.net, samples) if isinstance(data, DataFile) else data
            return TrainingRun(self, data, folder, **options).run(iterations)

    def save(self, path: str | Path, extra: Mapping[str, ArrayLike] | None = None) -> None:
        """Write the state and `extra` arrays to an .npz file, atomically."""
        checkpoint.write(path, self.state_dict(), extra)

    def load(self, path: str | Path) -> dict[str, np.ndarray]:
        """Restore what `save` wrote; return its extra arrays. Raises TrainError if the file is of another network."""
        state, self.extra = checkpoint.read(path)
        self.load_state_dict(state, path)
        return self.extra

    def resume(self, path: str | Path) -> None:
        """Continue from a weights file.

        If the state next to the file, or next to what a link points to, was saved with exactly these weights, training
        continues bit-exactly. Otherwise the weights are used as they are, from the iteration that their image count gives,
        with momentum 0 and a TrainWarning. An .npz file is restored as `load` does. Raises WeightsError, TrainError.
        """
        path = Path(path).expanduser()
        if path.suffix == ".npz":
            self.load(path)
            return
        problems = []
        for candidate in checkpoint.states_of(path):
            try:
                state, extra = checkpoint.read(candidate)
                if checkpoint.belongs_to(state, path, self.net.nodes):
                    self.load_state_dict(state, candidate)
                    self.extra = extra
                    return
                problems.append(f"{candidate}: is the state of other weights, of iteration {self.iteration_of(state)}")
            except TrainError as e:
                problems.append(str(e).rpartition(";")[0])
        self.reset()
        self.net.load_weights(path, self.seed)
        self.iteration = self.net.seen // max(self.batch, 1)
        if problems or self.iteration:
            problem = problems[-1] if problems else f"{checkpoint.state_path(path)}: does not exist"
            warnings.warn(
                f"{problem}; training continues from {path}, iteration {self.iteration}, with momentum 0",
                TrainWarning, stacklevel=2,
            )  # fmt: skip
