"""Whole engines are tested in their own environment only, where nothing may be missing."""

import importlib.util

# In make test-engines no test skips: what does not import there fails.
collect_ignore_glob = [] if importlib.util.find_spec("tpu_inference") else ["test_*.py"]
