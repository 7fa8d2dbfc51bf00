"""Kernels of a compiled training step, on NHWC maps: each function returns the launches of one pass as `KernelCall`s.

kernel_call.py      a kernel with its arguments, to run at once or to emit as a launch of a program
convolution.py      convolutions on tensor cores
data_gradient.py    gradients of their inputs
weight_gradient.py  gradients of their kernels
depthwise.py        gradients of depthwise convolutions
fma_tile.py         tiles of products without tensor cores, of both
pack_weights.py     kernels as convolutions and gradients read them, from flat float32 weights (segments.py)
batch_norm.py       statistics, batch norm or bias with activation, and their gradients (channel_sums.py)
gradients.py        gradients of pooling, upsampling and sums
update.py           SGD and Adam on all weights in one launch each, and the loss scale
"""
