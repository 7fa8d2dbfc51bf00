"""Every kernel compiles for every architecture without warnings or register spills."""

from __future__ import annotations

import os
import re

import nvrtc
import pytest

from gpudarknet.backend import cuda

BLOCK = 256  # the default of launch()


@pytest.fixture(autouse=True)
def wheel():
    if nvrtc.library() is None:
        missing = "NVRTC is not installed: pip install nvidia-cuda-nvrtc-cu12"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)


@pytest.mark.parametrize("file", cuda.files())
def test_kernels_compile_for_the_oldest_and_the_newest_architecture(file):
    """One storage type each, as they differ in conversions only."""
    for T, architecture in zip(
        cuda.STORAGE.values(), (min(nvrtc.ARCHITECTURES), max(nvrtc.ARCHITECTURES)), strict=True
    ):
        check(file, T, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("T", cuda.STORAGE.values())
@pytest.mark.parametrize("file", cuda.files())
def test_kernels_compile_for_every_architecture(file, T):
    for architecture in nvrtc.ARCHITECTURES:
        check(file, T, architecture)


def check(file, T, architecture):
    cubin, log = nvrtc.compile(cuda.source(file, T), architecture)
    assert log == "", f"sm_{architecture}"
    usage = nvrtc.usage(cubin)
    assert set(usage) == set(cuda.parameters(file))
    for kernel, (registers, local) in usage.items():
        assert local == 0, f"{kernel} spills on sm_{architecture}"
        assert registers * BLOCK <= 65536, f"a block of {kernel} does not fit on sm_{architecture}"


VECTORIZED = {
    "nhwc": ("im2col", "maxpool", "upsample"), "direct": ("depthwise",),
    "epilogue": ("epilogue", "epilogue_im2col", "epilogue_split"),
    "epilogue_pool": ("maxpool_epilogue", "maxpool_epilogue_im2col"),
}  # fmt: skip


@pytest.mark.parametrize("T", cuda.STORAGE.values())
@pytest.mark.parametrize("file", VECTORIZED)
def test_plans_move_16_bytes_at_a_time(file, T):
    bodies = ptx_bodies(file, T)
    for kernel in VECTORIZED[file]:
        for access in ("ld", "st"):
            accesses = re.findall(rf"{access}\.global(?:\.nc)?\.(?:v4\.[bfu]32|v2\.[bfu]64)", bodies[kernel])
            assert accesses, f"{kernel} has no {access} of 16 bytes"


ACTIVATING = {
    "epilogue": ("epilogue", "epilogue_im2col", "epilogue_split"),
    "epilogue_pool": ("maxpool_epilogue", "maxpool_epilogue_im2col"), "winograd": ("winograd_output_transform",),
    "direct": ("convolve", "convolve_float32", "convolve_uint8"), "nhwc": ("yolo",), "activation": ("activate",),
}  # fmt: skip


@pytest.mark.parametrize("file", ACTIVATING)
def test_activations_need_no_exact_division(file):
    """It is a call where its operands are very large or small."""
    bodies = ptx_bodies(file, "half_t")
    for kernel in ACTIVATING[file]:
        assert re.findall(r"(?:div|rcp)\.rn\S*", bodies[kernel]) == [], kernel
        assert "rcp.approx.ftz.f32" in bodies[kernel]


def ptx_bodies(file, T):
    """Return the PTX of each kernel of a file."""
    ptx, log = nvrtc.compile(cuda.source(file, T), 90, "PTX")
    assert log == ""
    return dict(re.findall(r"\.entry (\w+)\((.*?)\n}\n", ptx.decode(), re.DOTALL))


def test_compiler_messages_name_file_and_line():
    text = cuda.source("upsample").replace("float sum = 0;", "float sum = zero;")
    line = (cuda.folder() / "upsample.cu").read_text().splitlines().index("    float sum = 0;") + 1
    cubin, log = nvrtc.compile(text, 80)
    assert cubin == b""
    assert log.startswith(f'upsample.cu({line}): error: identifier "zero" is undefined')
