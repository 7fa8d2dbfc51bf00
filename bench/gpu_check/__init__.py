"""Check and measure a machine with a GPU: `make gpu-check`, or in a checkout `python -m bench.gpu_check`.

Part A (under 4 minutes) checks correctness and measures the main networks, part B (under 5 minutes) measures the rest. A part
is a list of stages, a stage a list of cases. Each case gives one JSON row, printed and written as soon as it is known, so an
interrupted run keeps its rows. bench/results/README.md documents them.

`case` defines stages and cases, `checks` lists them; `runner` runs a stage in a separate process, which is `child`; `environment`
describes the machine. The cases are in `correctness`, `accuracy`, `robustness`, `tools` (compute-sanitizer and Nsight Compute,
which run `target`), `speed`, `torch_speed`, `tuning`, `launch_costs`, `ceilings` and `training`; `networks` makes the networks
they run. `bench/gpu_report.py` makes README.md's table from the rows, `bench/gpu_tuning.py` a tuning file.
"""
