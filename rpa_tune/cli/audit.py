"""`rpa-tune audit`: whether a server would find tuned rows."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path

import click

from rpa_kernels import layout
from rpa_kernels.problem import Problem
from rpa_tune.cli.main import print_json
from rpa_tune.dispatch.audit import Coverage, Entry, audit
from rpa_tune.dispatch.dispatcher import load_dispatcher
from rpa_tune.dispatch.engine import Engine
from rpa_tune.errors import UsageError
from rpa_tune.models import load_model

EXIT_MISSES = 3
# From which coverage on a bucket counts as missed.
_FAIL_ON = {
    "nearest": {Coverage.NEAREST, Coverage.HEURISTIC, Coverage.INFEASIBLE},
    "heuristic": {Coverage.HEURISTIC, Coverage.INFEASIBLE},
    "infeasible": {Coverage.INFEASIBLE},
}


@click.command(name="audit")
@click.option("--model", required=True, help="Model name, or the path of a config.json.")
@click.option("--chip", required=True, help="Chip of the server.")
@click.option("--tp", default=1, show_default=True, help="Devices that share the heads.")
@click.option("--max-num-seqs", default=256, show_default=True, type=click.IntRange(1),
              help="Most sequences in one step.")  # fmt: skip
@click.option("--max-num-batched-tokens", default=8192, show_default=True, type=click.IntRange(1),
              help="Most new tokens in one step.")  # fmt: skip
@click.option("--max-model-len", default=8192, show_default=True, type=click.IntRange(1),
              help="Longest context, tokens.")  # fmt: skip
@click.option("--bucket-seqs", is_flag=True,
              help="The server pads to powers of two of sequences, too.")  # fmt: skip
@click.option("--page-size", default=128, show_default=True, type=click.IntRange(1),
              help="Tokens in one KV cache page.")  # fmt: skip
@click.option("--kv-dtype", default="bfloat16", show_default=True,
              type=click.Choice(layout.KV_DTYPES), help="Dtype of the KV cache.")  # fmt: skip
@click.option("--tables", type=click.Path(path_type=Path), help="Laid over the shipped tables.")
@click.option("--fail-on", type=click.Choice(sorted(_FAIL_ON)), default="infeasible",
              show_default=True, help="Least coverage that counts as a miss.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def audit_command(
    model: str,
    chip: str,
    tp: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    max_model_len: int,
    bucket_seqs: bool,
    page_size: int,
    kv_dtype: str,
    tables: Path | None,
    fail_on: str,
    as_json: bool,
) -> None:
    """Lists every bucket a server compiles, and where its configs would come from.

    The options are the server's own. An expected loss is what tuning gained, on average, where it
    was done on this chip; `-` when no row can tell.

    Exit codes: 0 every bucket is covered; 2 usage; 3 misses.

    Example: rpa-tune audit --model llama3-8b --chip v6e --max-num-seqs 64 --fail-on heuristic
    """
    share = load_model(model)
    windows = {"none": (False,), "all": (True,), "some": (False, True)}[share.windowed_layers]
    share = share.at_tp(tp)
    dispatcher = load_dispatcher(chip, tables)
    engine = Engine(max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens,
                    bucket_seqs=bucket_seqs)  # fmt: skip
    pages_per_seq = layout.cdiv(max_model_len, page_size)
    entries: list[tuple[int | None, Entry]] = []
    for windowed in windows:
        window = share.sliding_window_tokens if windowed else None
        try:
            problem = Problem(
                num_q_heads=share.num_q_heads,
                num_kv_heads=share.num_kv_heads,
                head_dim=share.head_dim,
                page_size=page_size,
                max_num_tokens=max_num_batched_tokens, max_num_seqs=max_num_seqs,
                pages_per_seq=pages_per_seq, num_pages=pages_per_seq * max_num_seqs,
                kv_dtype=kv_dtype,
                sliding_window=window,
                soft_cap=share.soft_cap,
                has_sinks=share.has_sinks,
            )  # fmt: skip
        except ValueError as error:
            raise UsageError(str(error), where="the server's options") from error
        problems = (bucket.problem for bucket in engine.buckets(problem))
        entries += [(window, entry) for entry in audit(dispatcher, problems)]
    misses = [entry for _, entry in entries if entry.coverage in _FAIL_ON[fail_on]]
    if as_json:
        listed = [{"window": window, **asdict(entry)} for window, entry in entries]
        counts = Counter(entry.coverage for _, entry in entries)
        print_json({"entries": listed, "counts": counts, "misses": len(misses)})
    else:
        _print(entries, misses, fail_on)
    if misses:
        raise click.exceptions.Exit(EXIT_MISSES)


def _print(entries: list[tuple[int | None, Entry]], misses: list[Entry], fail_on: str) -> None:
    click.echo(
        f"{'tokens':>7}{'seqs':>6}{'window':>8}  {'family':8}{'coverage':11}{'loss %':>7}  why"
    )
    for window, entry in entries:
        loss = "-" if entry.expected_loss_pct is None else f"{entry.expected_loss_pct:.1f}"
        click.echo(
            f"{entry.num_tokens:>7}{entry.num_seqs:>6}{window or '-':>8}  {entry.family:8}"
            f"{entry.coverage:11}{loss:>7}  {entry.why}"
        )
    counts = Counter(entry.coverage for _, entry in entries)
    summary = ", ".join(f"{counts[coverage]} {coverage}" for coverage in Coverage)
    click.echo(f"{len(entries)} look-ups: {summary}; {len(misses)} misses (--fail-on {fail_on})")
