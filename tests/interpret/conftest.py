"""Threads enough for two interpreted cores, whatever the machine has."""

import os

from rpa_tune.compile.target import num_xla_threads

os.environ.setdefault("PJRT_NPROC", num_xla_threads())
