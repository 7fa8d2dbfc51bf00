# On a fresh machine: `make demo` detects the objects in a photograph, `make test` runs all tests.
# Both create an environment in .venv first; PYTHON=python3.12 selects another Python (3.10 or newer).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

unexport PYTHONDONTWRITEBYTECODE  # each of the processes that tests start would compile the package again

.DEFAULT_GOAL := help
.PHONY: help demo test test-cuda test-kills bench docs lint gpu-check record-opencv4 clean

help:
	@echo 'make demo       download yolov4-tiny and detect the objects in a photograph'
	@echo 'make test       run the tests; those of CUDA kernels need g++, but no GPU; SLOW=1 adds sanitizers and every architecture'
	@echo 'make test-cuda  run the CUDA tests with the real CuPy on an emulated GPU'
	@echo 'make test-kills kill the workers and drivers of a detection job over 2,000 images, at random points (5 minutes)'
	@echo 'make bench      benchmark this machine (4 minutes): FPS, GFLOPS, other frameworks; tables, build/bench.jsonl, build/bench.html'
	@echo 'make docs       build the documentation into build/site'
	@echo 'make lint       run ruff and mypy'
	@echo 'make gpu-check  check and measure the GPU of this machine; PART=A (4 minutes) or B (5), OUT=folder for the results'
	@echo 'make record-opencv4  record what OpenCV 4 answers, in an environment of its own; tests compare cv2dnn with it'
	@echo 'make clean      remove .venv and all build output'

demo: $(VENV)/demo
	$(BIN)/gpudarknet weights yolov4-tiny
	$(BIN)/gpudarknet detect yolov4-tiny yolov4-tiny "$$($(BIN)/python -c 'import skimage; print(skimage.data_dir)')/motorcycle_left.png"
	@echo 'The image with its boxes: $(CURDIR)/predictions.jpg'

test: $(VENV)/test
	$(BIN)/python -m pytest -n auto --dist worksteal $(if $(SLOW),--slow)

# One BLAS thread per pytest process; the first run compiles 600 kernels with g++.
test-cuda: $(VENV)/emulator
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m cuda --cuda-emulator --slow

test-kills: $(VENV)/test
	$(BIN)/python tests/kill_jobs.py

bench: $(VENV)/bench
	@mkdir -p build
	$(BIN)/python -m bench --layers --seconds 3 --limit 200 --out build/bench.jsonl

docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(VENV)/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Uses the Python that has CuPy, from .venv or PYTHON; installs nothing, as the machine with the GPU may have no network.
gpu-check:
	@for python in $(BIN)/python $(PYTHON); do \
	  $$python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("cupy") is None)' 2>/dev/null && break; done; \
	$$python -m bench.gpu_check $(if $(PART),--part $(PART)) $(if $(OUT),--out '$(OUT)')

record-opencv4:
	$(PYTHON) -m venv build/opencv4
	build/opencv4/bin/pip install --quiet 'opencv-python-headless<5' 'numpy>=1.26'
	cd tests && for script in opencv4 opencv4_calls; do PYTHONPATH=.. ../build/opencv4/bin/python $$script.py || exit 1; done

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .benchmarks tests/host_cuda/build tests/cuda_emulator/build

# Debian packages venv separately: install it as root, otherwise print how.
$(BIN)/python:
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { test "$$(id -u)" = 0 && \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qqy python3-venv >/dev/null 2>&1; } || { echo 'make: $(PYTHON) lacks venv; sudo apt install python3-venv'; false; }
	$(PYTHON) -m venv $(VENV)

# A stamp file per set of extras, outdated when pyproject.toml changes. Without libGL (servers, containers) opencv-python does
# not load, but opencv-python-headless does. Python compiles what is imported; pip would compile everything, for half a minute.
$(VENV)/demo $(VENV)/test $(VENV)/emulator $(VENV)/bench $(VENV)/docs $(VENV)/dev: $(VENV)/%: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[$*]'
	@$(BIN)/python -c 'import cv2' 2>/dev/null || { echo 'no libGL: replacing opencv-python by opencv-python-headless'; \
	  $(BIN)/python -m pip uninstall --quiet --yes opencv-python opencv-python-headless && \
	  $(BIN)/python -m pip install --quiet --no-compile opencv-python-headless; }
	@touch $@
