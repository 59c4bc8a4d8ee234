"""The kernels of tpu-inference: v3, hd64, batched and stacked."""
