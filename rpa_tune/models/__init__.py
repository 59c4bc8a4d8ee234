"""Models and the shapes that servers compile for them.

`model.py` is what a model is here (kinds of layers), `catalog.py` has those known by name and reads
files, `buckets.py` says which shapes a server compiles, `padding.py` what the cache's padding
costs.
"""
