"""A user's own Pallas kernel: compiled for a TPU that is not there, simulated, explained."""
