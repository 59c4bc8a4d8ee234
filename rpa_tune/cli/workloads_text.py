"""How `rpa-tune workloads` looks on a terminal: tables and histograms from plain values."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

BAR_CELLS = 40
HISTOGRAMS = {
    "context_tokens_per_seq": "context length per sequence, tokens",
    "seqs_per_step": "sequences per launch",
    "tokens_per_step": "new tokens per launch",
    "new_tokens_per_seq": "new tokens per sequence",
}


def print_list(presets: Mapping[str, Mapping[str, Any]], traces: Sequence[str]) -> None:
    """Prints every preset with what it is."""
    console = Console(highlight=False)
    table = Table("preset", "what it is", "source", box=None, header_style="bold")
    for name, mapping in presets.items():
        table.add_row(name, mapping["about"], " ".join(str(mapping["source"]).split()))
    console.print(table)
    console.print(f"\nTraces: {', '.join(traces)} (`--trace NAME`, or `requests: {{trace: NAME}}`)")


def print_summary(summary: Mapping[str, Any]) -> None:
    """Prints whichever parts a summary has."""
    console = Console(highlight=False)
    console.print(
        f"[bold]{escape(summary['name'])}[/]: {escape(summary['source'])}", soft_wrap=True
    )
    trace = summary.get("trace")
    if trace and trace["summary"] not in summary["source"]:
        console.print(f"read as: {escape(trace['summary'])}", soft_wrap=True)
    if summary.get("requests"):
        _print_requests(console, summary)
    if summary.get("kinds"):
        _print_kinds(console, summary["kinds"])
    for key, title in HISTOGRAMS.items():
        _print_histogram(console, title, summary["distributions"][key])
    if "batches" in summary:
        _print_batches(console, summary)
    if "compression" in summary:
        _print_error(console, summary["compression"])


def _print_requests(console: Console, summary: Mapping[str, Any]) -> None:
    requests, engine = summary["requests"], summary["engine"]
    prompts, outputs = requests["prompt_tokens"], requests["output_tokens"]
    console.print(
        f"{requests['count']:,} requests; prompt tokens: median {prompts['p50']:,.0f}, 95th "
        f"percentile {prompts['p95']:,.0f}; output tokens: median {outputs['p50']:,.0f}, "
        f"95th percentile {outputs['p95']:,.0f}"
    )
    console.print(
        f"{engine['num_steps']:,} launches in {engine['engine_s']:,.0f} s of engine time (guess); "
        f"{engine['num_preemptions']:,} preemptions, "
        f"{engine['num_cached_tokens']:,} tokens from the prefix cache"
    )
    if summary["num_ramp_steps"]:
        console.print(
            f"{summary['num_ramp_steps']:,} launches of ramp-up and ramp-down are excluded"
        )
    for reason, count in summary["dropped"].items():
        console.print(f"[yellow]dropped {count:,}: {reason}[/]")


def _print_kinds(console: Console, kinds: Mapping[str, Any]) -> None:
    table = Table("launches", "number", "share", "attention time (heuristic)", box=None)
    for name, kind in kinds.items():
        table.add_row(
            name.replace("_", "-"),
            f"{kind['num_steps']:,}",
            f"{kind['launch_share']:.1%}",
            f"{kind['attention_time_share']:.1%}",
        )
    console.print()
    console.print(table)


def _print_histogram(console: Console, title: str, histogram: Mapping[str, Any]) -> None:
    console.print(
        f"\n[bold]{title}[/]: mean {histogram['mean']:,.1f}, median {histogram['p50']:,}, "
        f"95th percentile {histogram['p95']:,}, maximum {histogram['p100']:,}"
    )
    shares = histogram["share"]
    first = next(i for i, share in enumerate(shares) if share >= 0.0005)
    largest = max(shares)
    for upper, share in list(zip(histogram["upper"], shares, strict=True))[first:]:
        bar = "█" * round(BAR_CELLS * share / largest)
        console.print(f"  ≤ {upper:>9,} {share:>6.1%} {bar}")


def _print_batches(console: Console, summary: Mapping[str, Any]) -> None:
    table = Table("weight", "decode", "prefill", "mixed", "tokens", "context", "longest", box=None)
    for batch in summary["batches"]:
        table.add_row(
            f"{batch['weight']:.3f}",
            f"{batch['num_decode']}",
            f"{batch['num_prefill']}",
            f"{batch['num_mixed']}",
            f"{batch['num_tokens']:,}",
            f"{batch['context_tokens']:,}",
            f"{batch['longest_context_tokens']:,}",
        )
    console.print(f"\n[bold]{len(summary['batches'])} batches[/] (digest {summary['digest']})")
    console.print(table)


def _print_error(console: Console, compression: Mapping[str, Any]) -> None:
    console.print(
        f"\n{compression['num_batches']} batches represent {compression['num_steps']:,} launches; "
        "error of the mean kernel time (heuristic):"
    )
    _print_family_errors(console, "kernel time", compression["time_error"])
    console.print(f"  largest error of all preserved measures: {compression['worst_error']:.2%}")
    for name, errors in compression["held_out_time_error"].items():
        _print_family_errors(console, f"held out: {name}", errors)


def _print_family_errors(console: Console, name: str, errors: Mapping[str, float]) -> None:
    listing = ", ".join(f"{family} {error:+.2%}" for family, error in errors.items())
    console.print(f"  {name}: {listing}")
