"""Kernels and tables of other projects: run as opponents, tuned by our sweep, fed by our tables."""
