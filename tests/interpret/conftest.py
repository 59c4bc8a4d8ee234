"""Threads for the interpreter on a machine of one CPU; see `compile.target.build_environment`."""

import os

os.environ.setdefault("PJRT_NPROC", str(max(4, os.cpu_count() or 1)))
