"""Attention by blocks of query tokens: what the prefill and mixed families share."""
