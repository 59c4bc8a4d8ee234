"""Tuned tables as package data: one folder a chip, one JSON Lines file a family."""
