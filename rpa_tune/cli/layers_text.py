"""How commands say which kinds of layers a model has, and which of them no kernel serves."""

from dataclasses import asdict
from typing import Any

import click

from rpa_tune.models.model import Model


def print_layers(model: Model, *, err: bool = False) -> None:
    """One line with every kind of layers, and one for each thing that was taken for granted.

    Args:
      model: The whole model.
      err: Whether to print on stderr.
    """
    click.echo(f"layers of {model.name}: {model.layers_text}", err=err)
    for note in model.notes:
        click.echo(f"note: {note}", err=True)


def layers_to_dict(model: Model) -> dict[str, Any]:
    """The JSON form: `kinds` with their numbers, `other_layers`, and `notes`."""
    return {
        "kinds": [
            {"name": model.name_of(kind), **asdict(kind), "unserved": kind.refusal}
            for kind in model.kinds
        ],
        "other_layers": dict(model.other_layers),
        "notes": list(model.notes),
    }
