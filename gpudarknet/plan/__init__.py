"""The plan: a network compiled for one input shape and batch, for speed. `Network.predict` runs it.

    compile.py   layers -> steps (lower.py, build.py), fused, placed in one arena (arena.py): data that can be printed (steps.py)
    cpu.py       runs a plan with NumPy: convolve.py winograd.py gemm.py after.py, on all cores (team.py)
    choose.py    which way to convolve: by rule, or as tune.py has measured on this machine (`gpudarknet plan x.cfg -tune`)
    cuda.py      runs a plan on a GPU: launches.py elementwise.py steps, convolutions.py layers.py what is more than a launch or
                 two, as_convolution.py recurrent.py layers made of these, lane.py its stream; entry.py how it takes its input,
                 pictures.py how bytes get there
    scheme.py    how a plan runs there: which way each convolution goes (ways.py; race.py measures), what goes together, where
                 all lies
    engine.py    the programs of one network, by shape, batch and precision; dry.py a GPU that is not there

What bounds the CPU. Measured on two cores of a Zen 4 with OpenBLAS 0.3.31, whose sgemm reaches 100 to 115 GFLOP/s per core;
time is that of both cores, GFLOP/s count the convolution's own operations (so Winograd may exceed what the cores can do):

    yolov3 at 416 x 416           share   GFLOP/s   bound by
    3 x 3, 52 and 26 pixels        33 %   430 to 475   the products of F(4x4)
    3 x 3, 13 pixels               17 %      282    reading weights: F(2x2), as F(4x4) would read 2.25 times as many
    3 x 3, 208 and 104 pixels       6 %   256 to 389   the two transforms: few channels share each
    3 x 3, stride 2                20 %   158 to 189   the gemm
    1 x 1, 52 pixels and below     18 %   139 to 150   the gemm, and bias and activation: three passes over the result
    1 x 1, 208 and 104 pixels       2 %    91 to 94    those passes
    the first layer                 2 %       66    im2col and activation: 27 products per number
    heads, upsampling              <1 %             memory

Two things made the rest small: maps lie pixel by pixel, so that a transform is a gemm on a view of the map, with nothing cut
out before or put back after; and calls are recorded with their arguments and replayed (team.py), as two threads of Python lose
a quarter of their time to the interpreter's lock when each prepares its next call. What did not pay: F(6x6) (four times the
error of F(4x4)), and splitting a map into its phases before im2col of stride 2.
"""

from . import tuning
from .compile import compile
from .cpu.program import Program
from .cuda.upload import ImageBatch, uploader
from .program_cache import ProgramCache
from .steps import Plan

__all__ = ["ImageBatch", "Plan", "Program", "ProgramCache", "compile", "tuning", "uploader"]
