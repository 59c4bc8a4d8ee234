"""`rpa-tune explain MODULE:FUNCTION`: a Pallas kernel of anybody's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from rpa_tune.analysis.compare import changes_to_dict, compare_timelines
from rpa_tune.analysis.phases import bundle_labels, cycles_by_phase
from rpa_tune.candidate import Status
from rpa_tune.cli.compare_text import print_changes, print_ratio, print_timelines
from rpa_tune.cli.explain_text import (
    print_doubts,
    print_lines,
    print_loops,
    print_owners,
    print_phases,
    print_slots,
)
from rpa_tune.cli.output import print_json
from rpa_tune.cli.phases import phases_on_stderr
from rpa_tune.cli.trace import write_schedules
from rpa_tune.errors import UsageError
from rpa_tune.hw.chip import load_chip
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.parse import load_program
from rpa_tune.llo.profile import read_sources
from rpa_tune.report.timeline import write_trace
from rpa_tune.report.words import BOUNDS, CAUSES
from rpa_tune.user_kernel.answer import KernelTask
from rpa_tune.user_kernel.arguments import Arguments, load_values, parse_arguments
from rpa_tune.user_kernel.explain import KernelExplanation, explain_task, plain_schedule

_CANDIDATE = (
    "family", "model", "workload", "batch_file", "tries", "stores", "layers", "windowed",
    "second_opinion",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What the command was asked.

    Attributes:
      target: `MODULE:FUNCTION`.
      pair: Keywords of two versions to compare; None for one.
      trace: File for a trace.
      trace_step: Only one step of it.
      dump: File for the schedule.
      as_json: Print JSON.
      cache: Compile cache.
      deadline_s: Limit of each phase, seconds.
    """

    target: str
    pair: tuple[str, str] | None
    trace: Path | None
    trace_step: bool
    dump: Path | None
    as_json: bool
    cache: Path
    deadline_s: float


def explain_function(asked: Asked, options: dict[str, Any]) -> bool:
    """Explains a function's Pallas call, or two; whether there are times.

    Raises:
      UsageError: An option that says nothing of a function, or what `explain_task` raises.
    """
    for name in _CANDIDATE:
        if options.get(name):
            spelt = {"batch_file": "batch", "stores": "store"}.get(name, name).replace("_", "-")
            raise UsageError(
                f"--{spelt} is of a family's candidate, and {asked.target} is a function",
                hint="its arguments are given by --shapes, --arguments and --values",
            )
    texts = asked.pair or (options["config_text"],)
    names = ("A", "B") if asked.pair else ("",)
    found = [_explain(asked, options, text, name) for name, text in zip(names, texts, strict=True)]
    if asked.pair is not None:
        _compare(asked, found)
        return True
    (one,) = found
    if asked.as_json:
        print_json(one.to_dict() | {"phases": _phases(one)})
    else:
        _print(one)
    if one.answer.schedule is not None and asked.dump is not None:
        with plain_schedule(one.answer) as path:
            write_schedules({one.answer.call.name: path.read_text()}, asked.dump)
    if one.ok and asked.trace is not None:
        _trace(one, asked)
    return one.ok


def _explain(asked: Asked, options: dict[str, Any], config: str, name: str) -> KernelExplanation:
    where = "--compare" if asked.pair else "--config"
    more = parse_arguments(config, where)
    if more.positional:
        raise UsageError(
            f"{config!r:.60} has an argument without a name", where=where, hint="block_q=128"
        )
    maker = options["arguments"]
    if maker and options["shapes"]:
        raise UsageError("--shapes and --arguments both say what the function is called with")
    given = parse_arguments(options["shapes"] or "")
    task = KernelTask(
        chip=load_chip(options["chip"]),
        cache_dir=asked.cache,
        function=asked.target,
        arguments=Arguments(positional=given.positional, keywords=given.keywords),
        keywords=more.keywords,
        maker=maker or "",
        values=load_values(options["values"]) if options["values"] else {},
        call=options["call"] or "",
        folders=(str(Path.cwd()),),
    )
    with phases_on_stderr(name) as on_phase:
        return explain_task(task, asked.target, deadline_s=asked.deadline_s, on_phase=on_phase)


def _phases(found: KernelExplanation) -> dict[str, int]:
    if found.profile is None:
        return {}
    with plain_schedule(found.answer) as path:
        program, sources = load_program(path), read_sources(path.read_text())
    return cycles_by_phase(found.profile, program, bundle_labels(program, sources))


def _print(found: KernelExplanation) -> None:
    """Everything that is known of one Pallas call."""
    answer, timeline, chip = found.answer, found.timeline, found.chip
    call = answer.call
    click.echo(f"{found.name} on {chip.name}: Pallas call {call.name or '?'}")
    if call.operands:
        grid = " x ".join("?" if size < 0 else str(size) for size in call.grid)
        click.echo(f"operands  {', '.join(call.operands)}; grid {grid or 'none'}")
    if placed := [i for i, space in answer.spaces.items() if space in ("vmem", "cmem")]:
        click.echo(
            f"{'':10}XLA puts {', '.join(map(str, placed))} into fast memory before the kernel, as "
            "it does with small arrays: those copies are not timed"
        )
    if answer.others:
        click.echo(f"{'':10}not explained: {', '.join(answer.others)}")
    if call.is_in_loop:
        click.echo(f"{'':10}it is launched in a loop: this is one launch")
    if timeline is None:
        click.echo(f"{answer.status.value}: {answer.detail}")
        if answer.status is Status.NOT_UNDERSTOOD and answer.schedule is not None:
            click.echo("--dump FILE saves the compiler's schedule, whose line that is")
        return
    click.echo(f"time      {timeline.time_us:,.1f} us a launch, simulated")
    if span := found.interval_us:
        click.echo(
            f"error     90 % sure to be {span[0]:,.1f} to {span[1]:,.1f} us, by sets of parameters "
            f"that what is known of {chip.name} does not tell apart"
        )
    _print_traffic(found)
    click.echo(f"bound by  {timeline.bound_by}. {BOUNDS.get(timeline.bound_by, '')}")
    print_owners(timeline.cycles_by_owner)
    print_phases(_phases(found))
    assert found.profile is not None
    print_lines(found.profile)
    click.echo("\nloops")
    print_loops(timeline)
    print_slots(timeline)
    costs = answer.costs
    cached = " (cached)" if costs["from_cache"] else ""
    click.echo(
        f"\ncompiled in {costs['lower_s'] + costs['compile_s']:.1f} s{cached}, simulated in "
        f"{costs['simulate_s']:.1f} s"
    )
    print_doubts(timeline.unknown, timeline.guesses)


def _print_traffic(found: KernelExplanation) -> None:
    timeline, chip = found.timeline, found.chip
    assert timeline is not None
    peak = chip.hbm_bytes_per_s * len(timeline.core_cycles)
    achieved = timeline.achieved_bytes_per_s
    click.echo(
        f"HBM       {timeline.read_bytes / 1e6:,.1f} MB in and "
        f"{timeline.write_bytes / 1e6:,.1f} MB out in {timeline.num_copies:,} copies, "
        f"{achieved / 1e9:,.0f} of {peak / 1e9:,.0f} GB/s ({achieved / peak:.1%})"
    )
    costs = found.answer.costs
    if (vmem := costs["vmem_bytes"]) is not None:
        spill = costs["vmem_spill_bytes"] or 0
        spilled = f", {spill / 1e6:,.1f} MB of it spill slots" if spill else ""
        click.echo(f"VMEM      {vmem / 1e6:,.1f} of {chip.vmem_bytes / 1e6:,.1f} MB{spilled}")


def _compare(asked: Asked, found: list[KernelExplanation]) -> None:
    """Prints two versions side by side.

    Raises:
      UsageError: One has no time.
    """
    assert asked.pair is not None
    for text, one in zip(asked.pair, found, strict=True):
        if not one.ok:
            raise UsageError(
                f"{text} has no time to compare: {one.answer.status.value}: {one.answer.detail}",
                where="--compare",
            )
    before, after = (one.timeline for one in found)
    assert before is not None
    assert after is not None
    changes = compare_timelines(before, after)
    ratio = after.time_us / before.time_us
    if asked.as_json:
        sides = {"before": found[0].to_dict(), "after": found[1].to_dict()}
        print_json({**sides, "ratio": ratio, **changes_to_dict(changes)})
        return
    for name, text, one in zip("AB", asked.pair, found, strict=True):
        click.echo(f"{name}  {text}\n   {one.time_us:,.1f} us a launch, simulated")
    print_ratio((before.time_us, after.time_us), (before.set_us, after.set_us))
    print_changes("cycles by cause", changes["causes"], CAUSES, adds_up=True)
    print_timelines(changes["loops"], changes["units"], changes["figures"], (before, after))


def _trace(found: KernelExplanation, asked: Asked) -> None:
    assert asked.trace is not None
    with plain_schedule(found.answer) as path:
        program, sources = load_program(path), read_sources(path.read_text())
        dropped = write_trace(
            program, load_machine(found.chip.name), found.answer.scalars, asked.trace,
            title=f"{found.name} {found.answer.call.name}", one_step=asked.trace_step,
            labels=bundle_labels(program, sources),
        )  # fmt: skip
    cut = f"; {dropped:,} slices did not fit" if dropped else ""
    click.echo(f"trace in {asked.trace}{cut}; open it at ui.perfetto.dev", err=True)
