"""Models and the shapes that servers compile for them.

`model.py` is what a model is here (kinds of layers), `catalog.py` has those known by name and reads
files, `server.py` is a server by its flags, `buckets.py` says which shapes it compiles,
`padding.py` what the cache's padding costs, `weights.py` and `roofline.py` what a step does beside
attention.
"""
