"""Kernels compiled ahead of time: one checked file, who makes it and who runs it.

`file.py` reads and writes the file, `build.py` compiles what goes in, `compiled.py` runs it for the
dispatcher, and `jax_cache.py` fills jax's own cache for engines that trace the call themselves.
"""
