"""Public kernels as families: what they share here, a folder for each package they come from."""
