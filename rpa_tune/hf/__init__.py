"""Hugging Face `config.json` → the attention layers of a model.

`read.py` is the face. `types.yaml` holds what a file may leave out, `keys.py` the names that keys
go by and which of them change attention, `layers.py` makes the layers, `weights.py` counts the
matrices, `installed.py` asks an installed transformers. Neighbours: `rpa_tune/models/model.py` is
what comes out.
"""
