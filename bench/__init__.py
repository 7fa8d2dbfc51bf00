"""The benchmark suite: what this machine does, what it could do, and what a GPU does, for Darknet networks.

    gpudarknet bench                       (in a checkout also: make bench, python -m bench)
    gpudarknet bench estimate --gflops 39.76 yolo-voc
    gpudarknet bench compare before.jsonl after.jsonl

`timing` measures, `machine` and `gpu` describe, `engines` are what is compared and `worker` runs one of them in a process of
its own; `suite` lets them alternate. `records` is the file format, `rule` the rule of thumb; `columns`, `tables`, `plots` and
`page` are the report. `gpu_check/` checks and measures a GPU, and `gpu_report` makes README's table of what it finds.
`test_kernels.py` is for pytest-benchmark. Imports call this folder gpudarknet.bench, as a wheel does.
"""
