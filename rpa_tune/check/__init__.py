"""`rpa-tune tpu-check` as a library: is a TPU fit for the kernels, do predictions hold there."""
