"""How commands write results: JSON documents and counted nouns."""

import json
from typing import Any

import click


def print_json(data: Any) -> None:
    """Prints one JSON document on stdout, for `--json`."""
    click.echo(json.dumps(data, indent=2, sort_keys=True, allow_nan=False))


def counted(number: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
