"""The `rpa-tune` command: one file a command group, loaded when it is asked for.

Errors of the project are printed as `error:` and `hint:` on stderr and set the exit code; data
goes to stdout. Exit codes: 0 done; 1 error; 2 usage; 3 a bad table, or a sweep that finished
with failures; 75 budget spent, resumable; 130 interrupted, resumable.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from rpa_tune import __version__
from rpa_tune.errors import RpaTuneError

# Command name -> (module, attribute). Modules load on use, so that `rpa-tune chips` is quick.
COMMANDS = {
    "advise": ("rpa_tune.cli.advise", "advise_command"),
    "audit": ("rpa_tune.cli.audit", "audit_command"),
    "calibrate": ("rpa_tune.cli.calibrate", "calibrate"),
    "chips": ("rpa_tune.cli.chips", "chips"),
    "compile": ("rpa_tune.cli.compile", "compile_command"),
    "doctor": ("rpa_tune.cli.doctor", "doctor"),
    "explain": ("rpa_tune.cli.explain", "explain"),
    "opcodes": ("rpa_tune.cli.opcodes", "opcodes"),
    "plan": ("rpa_tune.cli.plan", "plan_command"),
    "portfolio": ("rpa_tune.cli.portfolio", "portfolio"),
    "report": ("rpa_tune.cli.report", "report"),
    "status": ("rpa_tune.cli.status", "status"),
    "sweep": ("rpa_tune.cli.sweep", "sweep"),
    "tables": ("rpa_tune.cli.tables", "tables"),
    "tpu-check": ("rpa_tune.cli.tpu_check", "tpu_check_command"),
    "verify": ("rpa_tune.cli.verify", "verify"),
    "workloads": ("rpa_tune.cli.workloads", "workloads"),
}


class LazyGroup(click.Group):
    """A click group whose commands are imported when first used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Command names in order."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports one command, or returns None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rpa-tune")
def cli() -> None:
    """Tunes Ragged Paged Attention kernels for TPUs, on machines that have no TPU.

    Example: rpa-tune sweep quickstart
    """


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits with a documented code."""
    try:
        # Outside standalone mode click returns the code of an `Exit` instead of raising it.
        code = cli.main(args=args, prog_name="rpa-tune", standalone_mode=False)
    except RpaTuneError as error:
        message, *rest = str(error).splitlines()
        click.echo("\n".join([f"error: {message}", *rest]), err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.filename is None:
            raise  # no file that a person named
        click.echo(f"error: {error.strerror}\n  in {error.filename}", err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("error: interrupted", err=True)
        sys.exit(130)
    sys.exit(code)
