"""Run one engine in a separate process, so that threads and libraries of one do not slow down another.

The protocol is JSON lines. The first line on stdin is a Job; the answer is {"ready": ...} or {"failed": reason}. Then each
{"seconds": s, "min_calls": n} is answered by {"wall": [...], "cpu": [...], "fields": {...}}: seconds, and more for the record.
Instead of a Job, {"gemm": n} and {"copy": mib} measure the machine and {"layers": Job} a network's layers, with one answer;
{"train": Job} is a Job that trains.
What libraries print on stdout goes to stderr, so that it cannot mix with the answers.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from dataclasses import asdict


def main() -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")

    def answer(**values: object) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    first = json.loads(sys.stdin.readline())
    if "gemm" in first or "copy" in first:
        from . import machine

        answer(rate=machine.gemm(first["gemm"]) if "gemm" in first else machine.copy_rate(first["copy"]))
        return
    from .engines import Job, Unavailable, start

    if "layers" in first:
        from . import layers

        answer(records=layers.measure(Job(**first["layers"])))
        return
    try:
        if "train" in first:
            from . import train

            session = train.start(Job(**first["train"]))
        else:
            session = start(Job(**first))
        answer(ready=True, version=session.version, note=session.note)
        for text in sys.stdin:
            request = json.loads(text)
            sample = session.sample(request["seconds"], request["min_calls"])
            answer(**asdict(sample), fields=session.fields())
    except Unavailable as e:
        answer(failed=str(e))


if __name__ == "__main__":
    main()
