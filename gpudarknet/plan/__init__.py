"""The plan: a network compiled for one input shape and batch, for speed. `Network.predict` runs it.

    compile.py   layers -> steps (lower.py, build.py), fused, placed in one arena (arena.py): data that can be printed (steps.py)
    cpu.py       runs a plan with NumPy: convolve.py winograd.py gemm.py after.py, on all cores (team.py)
    choose.py    which way to convolve: by rule, or as tune.py has measured on this machine (`gpudarknet plan x.cfg -tune`)
    cuda.py      runs a plan on a GPU: launches.py steps, convolutions.py layers.py as_convolution.py recurrent.py what is more
                 than a launch or two, lane.py its stream; entry.py how it takes its input, pictures.py how bytes get there
    scheme.py    how a plan runs there: which way each convolution goes (ways.py; race.py measures), what goes together, where
                 all lies
    engine.py    the programs of one network, by shape, batch and precision; dry.py a GPU that is not there

What bounds the CPU. Measured on two cores of a Zen 4 with OpenBLAS 0.3.31, whose sgemm reaches 100 GFLOP/s per core; time is
that of both cores, GFLOP/s count the convolution's own operations (so Winograd may exceed what the cores can do):

    yolov3 at 416 x 416           share   GFLOP/s   bound by
    3 x 3, 52 and 26 pixels        36 %      410    the products, then cutting and placing tiles
    3 x 3, 13 pixels               16 %      284    reading weights: F(2x2), as F(4x4) would read 2.25 times as many
    3 x 3, 208 and 104 pixels       9 %      170 to 270   the two transforms: few channels share each
    3 x 3, stride 2                21 %      124 to 184   the gemm; im2col is a quarter where channels are few
    1 x 1, 52 pixels and below     14 %      156 to 185   the gemm
    1 x 1, 208 and 104 pixels       2 %       80 to 106   bias and activation, three passes over the result
    the first layer                 2 %       76    im2col and activation: 27 products per number
    heads, upsampling              <1 %              memory

Mish costs three times what leaky does: in yolov4 the 1 x 1 layers of 208 pixels take 10 % at 65 GFLOP/s. What did not
pay: F(6x6) (four times the error of F(4x4)), and splitting a map into its phases before im2col of stride 2.
"""

from . import tune
from .compile import compile
from .cpu import Program
from .engine import Engine
from .pictures import Pictures, uploader
from .steps import Plan

__all__ = ["Engine", "Pictures", "Plan", "Program", "compile", "tune", "uploader"]
