"""What `rpa-tune explain` prints for people."""

import linecache
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from rpa_kernels.batch import Batch
from rpa_tune.analysis.explain import Explanation
from rpa_tune.analysis.neighbours import BOUNDED
from rpa_tune.analysis.question import Question
from rpa_tune.analysis.second_opinion import SecondOpinion
from rpa_tune.candidate import Status
from rpa_tune.cli.layers_text import print_layers
from rpa_tune.cli.problem_text import problem_text
from rpa_tune.evaluate.account import weighted_mean
from rpa_tune.evaluate.simulated import Simulation
from rpa_tune.hw.chip import Chip
from rpa_tune.llo.profile import Profile
from rpa_tune.llo.timeline import Timeline
from rpa_tune.models.padding import padding_note
from rpa_tune.report.words import BOUNDS

_BAR = 40  # characters of a full bar
_MAX_LOOPS = 8
_MIN_LOOP_SHARE = 0.01
_MAX_LINES = 10

NOT_TRIED = "none: no neighbouring config has a time; --tries 8 simulates up to 8"
_MAX_AROUND = 6
_MAX_NEIGHBOURS = 8  # printed; all are in the JSON form


def print_explanation(found: Explanation) -> None:
    """Prints everything that is known about one candidate."""
    question, evaluation = found.question, found.evaluation
    _print_head(question)
    if not evaluation.ok:
        click.echo(f"{evaluation.status.value}: {evaluation.detail}")
        if hint := _what_to_do(question, evaluation.status):
            click.echo(f"hint: {hint}")
        return
    metrics, chip = evaluation.metrics, question.candidate.chip
    low, high = min(evaluation.batch_us), max(evaluation.batch_us)
    click.echo(
        f"time      {evaluation.time_us:,.1f} us a launch, simulated: mean of "
        f"{len(evaluation.batch_us)} batches, {low:,.1f} to {high:,.1f}; "
        f"lower bound {found.lower_bound_us:,.1f}"
    )
    if span := metrics.get("interval_us"):
        click.echo(
            f"error     90 % sure to be {span[0]:,.1f} to {span[1]:,.1f} us, by sets of parameters "
            f"that what is known of {chip.name} does not tell apart"
        )
    _print_efficiency(found, chip)
    click.echo(f"bound by  {metrics['bound_by']}. {BOUNDS.get(metrics['bound_by'], '')}")
    _print_neighbours(found)
    print_owners(metrics["cycles_by_owner"])
    _print_heaviest(question, found.simulation)
    if found.profile is not None:
        print_phases(found.phases)
        print_lines(found.profile.cycles)
    _print_cost(metrics)
    print_doubts(metrics["unknown"], metrics["guesses"])


def print_second_opinion(found: SecondOpinion) -> None:
    """What the compiler's cost model says of the program that the kernel stands in."""
    profile = found.profile
    if found.around_us is None or profile.kernel is None:
        click.echo(f"\nsecond opinion: none: {profile.status.value}: {profile.detail}")
        return
    num = sum(one.count for one in profile.around)
    click.echo(
        f"\naround the kernel: {found.around_us:,.2f} us of XLA's operations ({num}, one after the "
        "other), by the compiler's own estimate; no other figure here counts them"
    )
    for one in profile.around[:_MAX_AROUND]:
        times = f"  {one.count} times" if one.count > 1 else ""
        click.echo(f"  {found.us(one):>10,.2f} us  {one.name}{times}")
    if len(profile.around) > _MAX_AROUND:
        rest = sum(map(found.us, profile.around[_MAX_AROUND:]))
        click.echo(f"  {rest:>10,.2f} us  {len(profile.around) - _MAX_AROUND} others")
    path = profile.kernel_instructions
    followed = "" if path is None else f", along {path:,} of its instructions"
    click.echo(
        f"the kernel itself: {found.us(profile.kernel):,.2f} us{followed}: the estimate takes no "
        "loop and no branch that depends on a batch, so it is no second time of the launch"
    )


def _what_to_do(question: Question, status: Status) -> str:
    """What may help a candidate to a time; empty where nothing is known to."""
    if status in (Status.COMPILE_TIMEOUT, Status.RUN_TIMEOUT):
        return "--deadline gives it longer; smaller blocks (--config) compile sooner"
    if status is Status.INFEASIBLE and question.is_default:
        return f"that config is {question.candidate.family.name}'s own choice; --config changes it"
    return ""


def head_text(question: Question) -> str:
    """What is asked of which problem, without the config."""
    candidate = question.candidate
    return (
        f"{candidate.family.name} on {candidate.chip.name}: {question.model}, "
        f"{problem_text(candidate.problem)}; workload {question.workload.name}"
    )


def _print_head(question: Question) -> None:
    candidate, problem = question.candidate, question.candidate.problem
    fields = " ".join(f"{k}={v}" for k, v in candidate.to_dict()["config"].items())
    click.echo(head_text(question))
    if note := padding_note(problem):
        click.echo(f"{'':10}{note}")
    print_layers(question.loaded)
    click.echo(f"config    {fields}{' (the default)' if question.is_default else ''}")


def _print_neighbours(found: Explanation) -> None:
    """What was tried beside it, fastest first, and what follows."""
    base_us = found.time_us or 0.0
    click.echo(f"advice    {found.advice or NOT_TRIED}")
    timed = sorted((n for n in found.neighbours if n.time_us), key=lambda n: n.time_us or 0.0)
    for near in timed[:_MAX_NEIGHBOURS]:
        time_us = near.time_us or 0.0
        click.echo(f"  {time_us:>10,.1f} us  {base_us / time_us:.2f}x  {near.change} ({near.how})")
    if len(timed) > _MAX_NEIGHBOURS:
        click.echo(f"  and {len(timed) - _MAX_NEIGHBOURS} slower ones")
    for near in found.neighbours:
        if near.how == BOUNDED:
            click.echo(f"  not tried, at least {near.bound_us or 0.0:,.1f} us: {near.change}")
        elif not near.time_us:
            click.echo(f"  no time, {near.status}: {near.change}")


def _print_efficiency(found: Explanation, chip: Chip) -> None:
    metrics, time_us = found.evaluation.metrics, found.time_us or 0.0
    # Of the schedule itself: a public kernel's account is a floor, and counts no copies.
    weights = [wb.weight for wb in found.question.workload.batches]
    timelines = found.simulation.timelines
    moved = weighted_mean([t.read_bytes + t.write_bytes for t in timelines], weights)
    copies = weighted_mean([t.num_copies for t in timelines], weights)
    achieved = moved / time_us * 1e-3
    hbm_bytes_per_s = chip.hbm_bytes_per_s * chip.num_cores_per_device
    click.echo(
        f"HBM       {moved / 1e6:,.1f} MB in {copies:,.0f} copies, "
        f"{achieved:,.0f} of {hbm_bytes_per_s / 1e9:,.0f} GB/s; "
        f"MBU {metrics['mbu']:.1%}, MFU {metrics['mfu']:.1%} (causal FLOPs over bf16 peak)"
    )
    spill = metrics.get("vmem_spill_bytes")
    spilled = f", {spill / 1e6:,.1f} MB of it spill slots" if spill else ""
    vmem, smem = metrics["vmem_bytes"], metrics["smem_bytes"]
    each = " on each core" if chip.num_cores_per_device > 1 else ""
    click.echo(
        f"VMEM      {vmem / 1e6:,.1f} of {chip.vmem_bytes / 1e6:,.1f} MB{spilled}; "
        f"SMEM {smem / 1e3:,.1f} of {chip.target.smem_bytes / 1e3:,.1f} kB{each}"
    )


def print_owners(cycles_by_owner: dict[str, int]) -> None:
    """Cycles by cause, largest first."""
    total = sum(cycles_by_owner.values())
    click.echo(f"\ncycles by cause ({total:,} in total)")
    for owner, cycles in sorted(cycles_by_owner.items(), key=lambda item: -item[1]):
        if cycles:
            click.echo(f"  {owner:16}{cycles:>14,}  {cycles / total:>6.1%}  {_bar(cycles / total)}")


def print_phases(phases: Mapping[str, int]) -> None:
    """Cycles by what the kernel does; see `analysis.phases`."""
    total = sum(phases.values())
    click.echo("\ncycles by phase, by opcode and source line")
    for phase, cycles in [*phases.items()][:_MAX_LOOPS]:
        click.echo(
            f"  {phase[:34]:34}{cycles:>14,}  {cycles / total:>6.1%}  {_bar(cycles / total)}"
        )


def print_lines(profile: Profile) -> None:
    """The source lines that take most."""
    total = float(profile.cycles.sum())
    click.echo("\ncycles by source line (the innermost, as the compiler keeps it)")
    lines = sorted(profile.lines.items(), key=lambda item: -item[1])
    for line, cycles in lines[:_MAX_LINES]:
        place = f"{Path(line.file).name}:{line.line}"
        text = linecache.getline(line.file, line.line).strip()
        click.echo(f"  {place[-34:]:34}{cycles:>14,.0f}  {cycles / total:>6.1%}  {text[:60]}")
    click.echo(f"  {'no line':34}{profile.no_line:>14,.0f}  {profile.no_line / total:>6.1%}")


def _print_heaviest(question: Question, simulation: Simulation) -> None:
    """Loops and slots of the batch that most of the time goes into."""
    weighted, timeline = simulation.heaviest(question.workload)
    click.echo(
        f"\nthe batch that takes most of the time: {_describe(weighted.batch)}; "
        f"{weighted.weight:.0%} of launches, {timeline.time_us:,.1f} us, bound by "
        f"{timeline.bound_by}"
    )
    if len(timeline.core_cycles) > 1:
        shares = " and ".join(
            f"{cycles / timeline.total_cycles:.0%}" for cycles in timeline.core_cycles
        )
        click.echo(f"  its cores are busy for {shares} of that; loops are those of the slower one")
    print_loops(timeline)
    print_slots(timeline)


def print_loops(timeline: Timeline) -> None:
    """The loops that take most."""
    click.echo("  loop             depth    entries       trips       cycles  share")
    shown = sorted(timeline.loops, key=lambda loop: -loop.cycles)[:_MAX_LOOPS]
    for loop in sorted(shown, key=lambda loop: loop.first):
        if loop.share >= _MIN_LOOP_SHARE:
            where = f"{loop.first:#x}..{loop.last:#x}"
            click.echo(
                f"  {where:16}{loop.depth:>6}{loop.entries:>11,}{loop.trips:>12,}"
                f"{loop.cycles:>13,}  {loop.share:>5.0%}"
            )


def print_slots(timeline: Timeline) -> None:
    """How much of each issue slot is used."""
    click.echo(f"  slot use over {timeline.num_bundles:,} bundles; busiest {timeline.busiest_slot}")
    for name, use in sorted(timeline.slots.items(), key=lambda item: -item[1].share):
        if use.instructions:
            click.echo(f"  {name:16}{use.instructions:>14,}  {use.share:>6.1%}  {_bar(use.share)}")


def _print_cost(metrics: dict[str, Any]) -> None:
    cached = " (cached)" if metrics["from_cache"] else ""
    click.echo(
        f"\ncompiled in {metrics['lower_s'] + metrics['compile_s']:.1f} s{cached}, "
        f"simulated in {metrics['simulate_s']:.1f} s"
    )


def print_doubts(unknown: Mapping[str, int], guesses: Sequence[str]) -> None:
    """What the figures rest on."""
    counted = ", ".join(f"{name} ({count:,})" for name, count in unknown.items())
    click.echo(f"not modelled: {counted or 'none'}")
    click.echo(f"guessed parameters: {', '.join(guesses) or 'none'}")


def _describe(batch: Batch) -> str:
    return (
        f"{batch.num_decode} decode, {batch.num_prefill} prefill and {batch.num_mixed} mixed "
        f"sequences, {batch.num_tokens:,} tokens, contexts {min(batch.kv_lens):,} to "
        f"{max(batch.kv_lens):,}"
    )


def _bar(share: float) -> str:
    return "█" * round(share * _BAR) or "▏"
