"""The benchmark suite: measured speed, peak speed and GPU results for Darknet networks.

    gpudarknet bench                       (in a checkout also: make bench, python -m bench)
    gpudarknet bench estimate --gflops 39.76 yolo-voc
    gpudarknet bench compare before.jsonl after.jsonl

`timing` takes measurements, `machine` and `gpu` describe the hardware, `engines` opens each engine, `worker` runs one of them in
a separate process and `suite` interleaves them. `records` defines the file format, `rule_of_thumb` the rule; `columns`, `tables`,
`plots` and `page` make the report. `gpu_check/` checks and measures a GPU, `gpu_report` turns its results into README's table,
`gpu_tuning` into the tuning file that ships for it, and `launch_rows` finds the times of a plan's launches in them.
`plan_counters` writes a table of docs/plan.md. `cluster` measures jobs on Ray, `train` training (with
`memory`). `test_kernels.py` is for pytest-benchmark.
This folder is imported as gpudarknet.bench, as in a wheel.
"""
