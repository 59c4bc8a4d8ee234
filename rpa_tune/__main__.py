"""The `rpa-tune` command and `python -m rpa_tune`: the command line, if its packages are there.

The base install is for serving and has no command line; say so instead of a traceback.
"""

import sys

from rpa_tune.errors import install_command


def main() -> None:
    """Runs the command line, or says what to install."""
    try:
        from rpa_tune.cli.main import main as run
    except ModuleNotFoundError as error:
        sys.exit(
            f"error: the command line needs the package {error.name!r}, which is not installed\n"
            f"hint: {install_command('tune')}"
        )
    run()


if __name__ == "__main__":
    main()
