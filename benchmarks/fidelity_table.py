"""Writes what the fits give: values into the machine table, sets of parameters beside it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fidelity_fits as fits
import numpy as np

from rpa_tune.hw.chip import load_chips
from rpa_tune.llo.calibrate import FOLLOWERS, Fit, draw, with_followers
from rpa_tune.llo.machine import Machine, load_machine

LLO = Path(__file__).parents[1] / "rpa_tune" / "llo"
MACHINES, SETS = LLO / "machines.yaml", LLO / "ensembles.json"
# Of a chip without a fit: how far off times are that no parameter explains, a guess.
_GUESSED_DEVIATION = 0.1
_WEAK = 0.5  # a standard error, as a share of the one beforehand, from which on a value is a guess


def write(judged: list[dict[str, Any]]) -> None:
    """Rewrites the table and the sets of the chips that were fitted; guesses keep their values."""
    text = MACHINES.read_text()
    for chip in judged:
        text = _with_fit(text, chip["chip"], chip["fitted"], len(_used(chip)))
    MACHINES.write_text(text)
    load_machine.cache_clear()
    sets = json.loads(SETS.read_text()) if SETS.exists() else {}
    for chip in judged:
        names, values, scales = fits.sets_of(chip["fitted"], chip["deviation"])
        source = f"fit to {len(_used(chip))} public device times"
        sets[chip["chip"]] = _entry(names, values.tolist(), scales, source)
    for name in sorted(set(load_chips()) - set(fits.CHOSEN)):
        sets[name] = _guessed(load_machine(name))
    SETS.write_text(_one_set_a_line(sets))


def _used(chip: Mapping[str, Any]) -> list[Any]:
    return [row for row in chip["rows"] if row["fitted_error"] is not None]


def _with_fit(text: str, chip: str, fitted: Fit, num_rows: int) -> str:
    """The table with a chip's fitted values."""
    start = re.search(rf"^{chip}:$", text, re.MULTILINE)
    assert start is not None
    end = text.find("\n\n", start.end())
    block = text[start.end() : end if end > 0 else len(text)]
    errors = dict(zip(fitted.values, np.sqrt(np.diag(fitted.covariance)), strict=True))
    for name, value in with_followers(fitted.values).items():
        if name in errors:
            source = f"fit to {num_rows} public device times, within {errors[name]:.0%}"
            confidence = "fitted" if errors[name] < _WEAK * fits.PRIOR[chip] else "guess"
        else:
            leader = next(n for n, f in reversed(FOLLOWERS.items()) if name in f and n in errors)
            source, confidence = f"as {leader}: no time tells them apart", "guess"
        block = _replaced(block, name, float(f"{value:.4g}"), source, confidence)
    queues = int(fitted.machine.value("copy_queues"))
    reason, confidence = "reads and writes apart, as on v6e", "guess"
    if "read_linear_bytes_per_s" in fitted.values:  # else no row depends on how copies queue
        reason = f"the form that fits {num_rows} public device times; benchmarks/fidelity.md"
        confidence = "fitted"
    block = _replaced(block, "copy_queues", queues, reason, confidence)
    return text[: start.end()] + block + text[end if end > 0 else len(text) :]


def _replaced(block: str, name: str, value: float, source: str, confidence: str) -> str:
    line = (
        f'  {name + ":":<29} {{value: {value:.4g}, source: "{source}", confidence: {confidence}}}'
    )
    # YAML reads a float only with a point before the exponent.
    line = re.sub(r"value: (\d+)e", r"value: \1.0e", line)
    changed, count = re.subn(rf"^  {name}: .*$", line, block, flags=re.MULTILINE)
    assert count == 1, name
    return changed


def _guessed(machine: Machine) -> dict[str, Any]:
    """Sets of a chip of which nothing was measured."""
    names = tuple(fits.GUESSED)
    covariance = np.diag([fits.GUESSED[name] ** 2 for name in names])
    values = draw(machine, names, covariance, count=fits.NUM_SETS)
    followers = tuple(with_followers({name: machine.value(name) for name in names}))
    return _entry(followers, values.tolist(), fits.scales(_GUESSED_DEVIATION), "guesses alone")


def _entry(names: Any, values: Any, scales: Any, source: str) -> dict[str, Any]:
    rounded = [[float(f"{value:.5g}") for value in row] for row in values]
    return {
        "names": list(names),
        "values": rounded,
        "scales": [round(scale, 5) for scale in scales],
        "source": source,
    }


def _one_set_a_line(sets: Mapping[str, Any]) -> str:
    """JSON that a diff shows set by set."""
    chips = []
    for chip in sorted(sets):
        entry = sets[chip]
        rows = ",\n   ".join(json.dumps(row) for row in entry["values"])
        chips.append(
            f' "{chip}": {{\n  "source": {json.dumps(entry["source"])},\n'
            f'  "names": {json.dumps(entry["names"])},\n'
            f'  "scales": {json.dumps(entry["scales"])},\n  "values": [\n   {rows}\n  ]\n }}'
        )
    return "{\n" + ",\n".join(chips) + "\n}\n"
