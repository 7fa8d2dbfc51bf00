"""A job: what is detected with what, and the records of it in the folder of its results.

`manifest.json` is written first; a folder holds one job, and a run whose manifest differs is refused. Then come the shards'
files, and `_SUCCESS.json` last. A job that was interrupted is resumed by running it again: what has a file is not computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .. import cfg as configs
from ..detector import Detector
from ..errors import DataError
from ..io.text import valid_utf8
from ..network import Network, load_network
from .rows import Options
from .store import Store

MANIFEST, SUCCESS = "manifest.json", "_SUCCESS.json"


@dataclass(frozen=True)
class Model:
    """A detector that can be sent to workers, whose backend may be another: here its network is on NumPy.

    files: the path and SHA-256 of the cfg, the weights and the names; the number of classes.
    """

    network: Network
    names: tuple[str, ...]
    options: Options
    backend: str
    files: dict[str, Any]

    @classmethod
    def load(
        cls,
        cfg: str | Path,
        weights: str | Path | None,
        names: str | Path | Sequence[str] | None,
        options: Options,
        backend: str,
    ) -> Model:
        """Read the files of a detector and check that they match. Raises CfgError, WeightsError, DataError."""
        for name, path in (("cfg", cfg), ("weights", weights)):  # open() takes an integer for an open file
            if not isinstance(path, str | os.PathLike) and (path is not None or name == "cfg"):
                raise DataError(f"{name} {path!r}: is not a path; workers get what is in the file")
        if not (names is None or isinstance(names, str | Path)) and not is_list_of_texts(names):
            raise DataError(f"names {type(names).__name__}: is neither a path nor a list of texts")
        network = load_network(configs.read(cfg), weights, "numpy")
        detector = Detector(network, None, names, letterbox=options.letterbox)
        files = {
            "cfg": {"path": str(cfg), "sha256": digest(Path(cfg).read_bytes())},
            "weights": weights and {"path": str(weights), "sha256": digest(Path(weights).read_bytes())},
            "classes": detector.head.num_labels,
            "names": {"sha256": digest("\n".join(detector.names).encode(errors="surrogateescape"))},
        }
        return cls(network, tuple(map(valid_utf8, detector.names)), options, backend, files)

    def detector(self) -> Detector:
        """Return the detector on its backend. Raises BackendError."""
        network = self.network if self.backend == "numpy" else self.network.to(self.backend)
        return Detector(network, None, self.names, letterbox=self.options.letterbox, precision=self.options.precision)


@dataclass(frozen=True)
class Summary:
    """What a job has done: when it ends, and, for `report`, so far.

    images, objects, errors: in all files of the job, of this run and earlier ones; errors are images without a result.
    shards: files; resumed: those of them that earlier runs have written. deaths: workers that died. seconds: of this run.
    out: the folder.
    """

    images: int = 0
    objects: int = 0
    errors: int = 0
    shards: int = 0
    resumed: int = 0
    deaths: int = 0
    seconds: float = 0.0
    out: str = ""


def is_list_of_texts(names: Any) -> bool:
    """Return whether names are a list of class names."""
    return isinstance(names, Sequence) and all(isinstance(name, str) for name in names)


def digest(data: bytes) -> str:
    """Return the SHA-256 of data, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def write_manifest(store: Store, manifest: Mapping[str, Any]) -> None:
    """Write a job's manifest, or compare it with the one that is there. Raises DataError if that is another job's."""
    old = read_json(store, MANIFEST)
    if old is None:
        write_json(store, MANIFEST, manifest)
        return
    there, here = dict(leaves(old)), dict(leaves(manifest))
    differing = [
        f"{key} is {there.get(key)!r} there, {here.get(key)!r} here"
        for key in here | there
        if there.get(key) != here.get(key) and not key.endswith(".path") and key != "gpudarknet"
    ]
    if differing:
        raise DataError(
            f"{store.name}/{MANIFEST}: belongs to another job: {', '.join(differing)}; choose another folder, or run that job"
        )


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value of nested dicts, with its path."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def write_success(store: Store, summary: Summary, shards: str) -> None:
    """Write the record that a job is complete. shards: the hash of all shards as listed."""
    counts = {
        f.name: getattr(summary, f.name) for f in fields(summary) if f.name in ("images", "objects", "errors", "shards")
    }
    write_json(store, SUCCESS, {**counts, "sha256": shards})


def read_json(store: Store, name: str) -> dict[str, Any] | None:
    """Return the content of a record; None if it is not there. Raises DataError."""
    data = store.read(name)
    if data is None:
        return None
    try:
        record = json.loads(data)
        if isinstance(record, dict):
            return record
    except ValueError:
        pass
    raise DataError(f"{store.name}/{name}: is damaged; remove the folder, or choose another one")


def write_json(store: Store, name: str, record: Mapping[str, Any]) -> None:
    """Write a record."""
    store.write(name, (json.dumps(record, indent=2) + "\n").encode())
