"""Kernel families as objects: what one is (`family.py`), ours (`own.py`), all (`registry.py`)."""
