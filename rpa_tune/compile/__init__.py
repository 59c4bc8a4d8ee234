"""Compiles kernels for TPUs that are not there, in worker processes.

The parent side (`pool`, `cache`, `dumps`) imports no jax; the worker side (`worker`, `lower`) does,
after `target.worker_environment` has set the environment that libtpu reads once.
"""
