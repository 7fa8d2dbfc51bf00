"""Kernels of a compiled training step, on NHWC maps: each function returns the launches of one pass as `KernelCall`s.

kernel_call.py      a kernel with its arguments, to run at once or to emit as a launch of a program
batch_norm.py       statistics, batch norm or bias with activation, and their gradients (channel_sums.py)
weight_gradient.py  gradients of kernels
data_gradient.py    gradients of convolutions' inputs
gradients.py        gradients of pooling, upsampling and sums
pack_weights.py     kernels as convolutions and their gradients read them, from flat float32 weights (segments.py)
update.py           SGD and Adam on all weights in one launch each, and the loss scale
"""
