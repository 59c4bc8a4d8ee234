"""How XLA runs interpreted kernels on the CPU: threads enough, and no time spent on fast code.

What a test interprets runs once, and most of its time is XLA's compile.
"""

import os
from importlib.metadata import version

from rpa_tune.compile.target import num_xla_threads

FLAGS = ["--xla_backend_optimization_level=0"]
# jax 0.11.2 has no other way to make code, and ends the process where a flag is unknown to it.
if tuple(int(part) for part in version("jax").split(".")[:3]) < (0, 11, 1):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")

# Threads enough for two interpreted cores, whatever the machine has.
os.environ.setdefault("PJRT_NPROC", num_xla_threads())
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
