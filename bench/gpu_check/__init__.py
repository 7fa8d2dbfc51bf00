"""The check of a machine with a GPU: `make gpu-check`, or in a checkout `python -m bench.gpu_check`.

Part A (less than 4 minutes) says whether everything is right and how fast the main networks are, part B (less than 5 minutes)
measures the rest. A part is a list of stages, a stage a list of cases, each of which gives one row of JSON, printed and written
as soon as it is known: a run that is cut short keeps the rows that it has. bench/results/README.md says how to read them.

`case` says what stages and cases are, `parts` lists them; `runner` runs a stage in a process of its own, which is `child`;
`environment` describes the machine. The cases: `correctness`, `accuracy`, `robustness`, `tools` (compute-sanitizer and Nsight
Compute, which watch `watched`), `speed`, `torch_speed`, `tuning`, `launch_costs`, `ceilings` and `training`; `networks` makes
what they run on. The table in README.md is made of the rows by `bench/gpu_report.py`.
"""
