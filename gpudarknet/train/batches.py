"""The batches of a training on its network's device: on a GPU, each is uploaded while the one before is computed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..array import Array
from ..data import Loader
from ..network import Network


class Batches:
    """A loader's batches as input of a network. Closes the loader."""

    def __init__(self, loader: Loader, net: Network):
        self.loader, self.net = loader, net
        self._uploader = ThreadPoolExecutor(1, "upload") if net.backend.uploads_images else None
        self._next: dict[int, Future[tuple[Any, np.ndarray]]] = {}

    @contextmanager
    def get(self, iteration: int) -> Iterator[tuple[Array, np.ndarray]]:
        """Yield batch `iteration`: x (N, C, H, W) float32 and truth (N, truths), on the host. On a GPU, x is valid in the block.

        Raises what `Loader.get` raises.
        """
        if self._uploader is None:
            yield self.loader.get(iteration)
            return
        batch, truth = self._upload(iteration).result()
        self._next = {iteration + 1: self._upload(iteration + 1)}
        with self.net.on_device(), batch.reading():
            yield batch.runs[0][0].view(np.float32), truth

    def _upload(self, iteration: int) -> Future[tuple[Any, np.ndarray]]:
        """Have a batch uploaded in the thread for it, unless that has been done."""
        assert self._uploader is not None
        return self._next.pop(iteration, None) or self._uploader.submit(self._get, iteration)

    def _get(self, iteration: int) -> tuple[Any, np.ndarray]:
        x, truth = self.loader.get(iteration)
        with self.net.on_device():  # a sample (C, H, W) is uploaded as bytes (C, H, 4 W)
            return self.net.backend.upload(list(x.view(np.uint8)), [(0, 0)] * len(x)), truth

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *exc: object) -> None:
        self.loader.close()
        if self._uploader is not None:
            self._uploader.shutdown(wait=True, cancel_futures=True)
