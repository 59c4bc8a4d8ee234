"""Finds a Python of another minor version, for environments that tests make.

    python tests/versions/interpreter.py 3.12     # prints its path

It is looked for as `python3.12` and under pyenv; `RPA_PYTHON_3_12=/path` names one.
"""

import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path


def find_interpreter(version: str) -> str:
    """A Python of this minor version that runs.

    Raises:
      SystemExit: There is none.
    """
    variable = f"RPA_PYTHON_{version.replace('.', '_')}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    there = sorted(glob.glob(str(pyenv / f"{version}.*" / "bin" / f"python{version}")))
    named = os.environ.get(variable)
    for python in filter(None, (named, shutil.which(f"python{version}"), *there)):
        run = subprocess.run([python, "-V"], capture_output=True, text=True, check=False)
        if run.returncode == 0 and run.stdout.startswith(f"Python {version}."):
            return python
    raise SystemExit(f"error: no Python {version}\nhint: install it, or set {variable}")


if __name__ == "__main__":
    print(find_interpreter(sys.argv[1]))
