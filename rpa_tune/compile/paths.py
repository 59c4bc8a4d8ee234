"""Where what can be made again is kept, unless a caller names another place."""

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """The user's cache folder for this project: `$XDG_CACHE_HOME` or `~/.cache`."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "rpa-tune"
