# Two commands on a fresh machine: `make demo` finds the objects in a photograph, `make test` runs all tests.
# Both make an environment in .venv first; PYTHON=python3.12 picks another Python (3.10 or newer).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-cuda bench docs lint gpu-check clean

help:
	@echo 'make demo       fetch yolov4-tiny, find the objects in a photograph, say where the picture is'
	@echo 'make test       run all tests; those of the CUDA kernels need g++, and no GPU'
	@echo 'make test-cuda  run the tests of CUDA with the real CuPy: on a GPU, or on an emulated one'
	@echo 'make bench      measure this machine for 4 minutes: FPS, GFLOPS, peers; tables, build/bench.jsonl, build/bench.html'
	@echo 'make docs       build the documentation into build/site'
	@echo 'make lint       ruff and mypy'
	@echo 'make gpu-check  on a machine with a GPU: is all right, how fast is it; PART=A (4 minutes) or B (5), OUT=folder of the results'
	@echo 'make clean      remove .venv and everything that was built'

demo: $(VENV)/demo
	$(BIN)/gpudarknet weights yolov4-tiny
	$(BIN)/gpudarknet detect yolov4-tiny yolov4-tiny "$$($(BIN)/python -c 'import skimage; print(skimage.data_dir)')/motorcycle_left.png"
	@echo 'The picture with its boxes: $(CURDIR)/predictions.jpg'

test: $(VENV)/test
	$(BIN)/python -m pytest -n auto --dist worksteal

# One BLAS thread in each of pytest's processes; the first run compiles 600 kernels with g++.
test-cuda: $(VENV)/emulator
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m cuda --cuda-emulator

bench: $(VENV)/bench
	@mkdir -p build
	$(BIN)/python -m bench --layers --seconds 3 --limit 200 --out build/bench.jsonl

docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(VENV)/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# With the Python that has CuPy, ours or PYTHON; nothing is installed, as there may be no network where the GPU is.
gpu-check:
	@for python in $(BIN)/python $(PYTHON); do \
	  $$python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("cupy") is None)' 2>/dev/null && break; done; \
	$$python -m bench.gpu_check $(if $(PART),--part $(PART)) $(if $(OUT),--out '$(OUT)')

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .benchmarks tests/host_cuda/build tests/cuda_emulator/build

# Debian splits venv from Python; as root we install it, else we say how.
$(BIN)/python:
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { test "$$(id -u)" = 0 && \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qqy python3-venv >/dev/null 2>&1; } || { echo 'make: $(PYTHON) lacks venv; sudo apt install python3-venv'; false; }
	$(PYTHON) -m venv $(VENV)

# A stamp per set of extras; both are out of date when pyproject.toml changes. Without libGL (a server, a container)
# opencv-python does not load; its build without windows does.
$(VENV)/demo $(VENV)/test $(VENV)/emulator $(VENV)/bench $(VENV)/docs $(VENV)/dev: $(VENV)/%: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@$(BIN)/python -c 'import cv2' 2>/dev/null || { echo 'no libGL here: opencv-python-headless takes the place of opencv-python'; \
	  $(BIN)/python -m pip uninstall --quiet --yes opencv-python opencv-python-headless && \
	  $(BIN)/python -m pip install --quiet opencv-python-headless; }
	@touch $@
