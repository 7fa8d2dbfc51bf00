"""Run the kernels under g++'s address and undefined-behaviour sanitizers.

They catch what guard pages cannot: indices outside shared or local arrays, int overflows, shifts that are too large. They must be
loaded before Python, so the kernels run in a separate process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import host_cuda
import pytest

pytestmark = pytest.mark.slow  # the tests run the kernels without sanitizers too

TESTS = Path(__file__).parent
INJECTED_BUG = """
import sys
sys.path.insert(0, {tests!r})
import host_cuda, numpy as np
launch = host_cuda.launcher(lambda text: text.replace({old!r}, {new!r}))
x = np.ones((1, 3, 5, 7), np.float32)
launch("norm.statistics_parts", 3 * 256, x, np.zeros(3, np.float32), np.zeros(3, np.float32), 35, 3, 35, 1)
"""


def run_sanitized(*arguments: str) -> subprocess.CompletedProcess[str]:
    if host_cuda.COMPILER is None:
        missing = "the sanitizers need g++ (or set CXX to a C++17 compiler)"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    names = [f"-print-file-name=lib{name}.so" for name in ("asan", "ubsan")]
    paths = [subprocess.check_output([host_cuda.COMPILER, name], text=True).strip() for name in names]
    if not all(os.path.isabs(path) for path in paths):
        pytest.skip(f"{host_cuda.COMPILER} has no shared sanitizer libraries")
    environment = {
        **os.environ,
        "HOST_CUDA_SANITIZE": "1",
        "LD_PRELOAD": ":".join(paths),
        "ASAN_OPTIONS": "detect_leaks=0:handle_segv=0",  # Python does not free all memory at exit
        "UBSAN_OPTIONS": "print_stacktrace=0",
        "PYTHONPATH": str(TESTS.parent),
        "PYTHONMALLOC": "malloc",  # so that small arrays also have guard bytes
    }
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=TESTS.parent, text=True, capture_output=True, check=False)


@pytest.mark.parametrize(
    ("file", "selection"),
    [
        ("test_ops", "host-cuda and 2x3x5x7"),
        ("test_plan_cuda", "host-cuda and (2x5x7x3 or 3x13x6x8 or few or region)"),
        ("test_plan_cuda_layers", "host-cuda and fp32-3 or fp16-1"),
        ("test_plan_upload", "host-cuda and many"),
        ("test_plan_cuda_recurrent", "host-cuda and joined"),
        ("test_plan_cuda_algorithms", "host-cuda and (3x13x6x8 or finish_two or test_winograd)"),
        ("test_mma", "host-cuda and (multiply_matrices or fragments or last_block or copies_fill)"),
        (
            "test_training_batch_norm",
            "host-cuda and (test_statistics or test_batch_norm_gradient) and (few or several) and odd",
        ),
        ("test_training_weight_gradient", "test_shapes and (3 or unaligned or groups) or more_splits"),
        ("test_training_data_gradient", "test_strides and (dilation or within) or not_aligned or packed and host-cuda"),
        ("test_training_gradients", "host-cuda and 2x5x7x3"),
        ("test_training_depthwise", "host-cuda and (stride or 33)"),
        ("test_training_update", "host-cuda"),
        ("test_implicit_gemm", "test_shapes and (part or head or three) or test_images or test_splits and 3"),
    ],
)
def test_kernels_run_without_sanitizer_reports(file, selection):
    done = run_sanitized("-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{file}.py", "-k", selection)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("old", "new", "report"),
    [
        ("sums[threadIdx.x / 32] = v", "sums[threadIdx.x / 32 + 32] = v", "out of bounds for type"),
        ("means[blockIdx.x] = mean", "means[blockIdx.x + 1] = mean", "heap-buffer-overflow"),
    ],
)
def test_injected_bugs_are_reported(old, new, report):
    done = run_sanitized("-c", INJECTED_BUG.format(tests=str(TESTS), old=old, new=new))
    assert done.returncode != 0
    assert report in done.stderr
