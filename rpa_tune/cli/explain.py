"""`rpa-tune explain`: one candidate in detail."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from rpa_tune.analysis.compare import compare
from rpa_tune.analysis.explain import DEFAULT_DEADLINE_S, Explanation, explain_question
from rpa_tune.analysis.second_opinion import SecondOpinion
from rpa_tune.analysis.second_opinion import second_opinion as ask_compiler
from rpa_tune.cli.compare_text import print_comparison
from rpa_tune.cli.explain_function import Asked, explain_function
from rpa_tune.cli.explain_text import print_explanation, print_second_opinion
from rpa_tune.cli.layers_text import layers_to_dict
from rpa_tune.cli.numbers import number, number_or_none
from rpa_tune.cli.options import batch_option, cache_option, kernel_options
from rpa_tune.cli.output import print_json
from rpa_tune.cli.phases import phases_on_stderr
from rpa_tune.cli.question import resolve_question
from rpa_tune.cli.trace import save_schedules, write_heaviest
from rpa_tune.errors import UsageError
from rpa_tune.llo.profile import lines_to_dicts
from rpa_tune.models.padding import padding_note

# Keys that the JSON form always has; null without a time.
ALWAYS = (
    "total_cycles", "cycles_by_owner", "mbu", "mfu", "bound_by", "hbm_bytes", "vmem_bytes",
    "interval_us",
)  # fmt: skip
_OF_FUNCTIONS = ("shapes", "arguments", "values", "call")


@click.command()
@click.argument("target", required=False)
@kernel_options
@click.option(
    "--shapes",
    metavar="ARGS",
    help="Arguments of TARGET: bf16[8,128] s32[4](700,90,1,1) causal=True.",
)
@click.option("--arguments", metavar="MODULE:FUNCTION", help="A function that returns them.")
@click.option(
    "--values",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="An .npz with the values of arguments, by their names.",
)
@click.option("--call", metavar="NAME", help="The Pallas call, where TARGET makes several.")
@click.option("--workload", help="Preset, trace or workload file; see `rpa-tune workloads`.")
@batch_option
@click.option(
    "--tries",
    default=0,
    show_default=True,
    type=number_or_none("tries"),
    help="Neighbouring configs to compile and simulate, at most.",
)
@click.option(
    "--store",
    "stores",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Sweep store whose times are used for advice; may repeat. Default: all in .rpa-tune.",
)
@click.option(
    "--compare",
    "pair",
    nargs=2,
    metavar="K=V,... K=V,...",
    help="Two configs side by side, in place of --config: which cause, loop and unit changed.",
)
@cache_option
@click.option(
    "--deadline",
    default=DEFAULT_DEADLINE_S,
    show_default=True,
    type=number("deadline"),
    help="Time limit, seconds, for compiling and for simulating.",
)
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    help="Write a Perfetto trace of the heaviest batch here.",
)
@click.option(
    "--trace-step",
    is_flag=True,
    help="Only one trip of the loop that takes most of the time, which makes a small trace.",
)
@click.option(
    "--dump",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Save the compiler's final schedule here, as text.",
)
@click.option(
    "--second-opinion",
    is_flag=True,
    help="Also what the compiler's own cost model says of XLA's operations around the kernel.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def explain(
    target: str | None,
    cache: Path,
    deadline: float,
    pair: tuple[str, str] | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Compiles and simulates one config, or any Pallas kernel, and shows where its time goes.

    TARGET is your own function, MODULE:FUNCTION or FILE.py:FUNCTION, with a Pallas call in it; say
    what it is called with by --shapes or --arguments. --config and --compare give it keywords. The
    simulator runs the kernel's scalar program, so it needs the values of what is read as scalars.
    Without TARGET a --family and a --model are explained.

    Without --config it is the family's default, which the dispatcher falls back on. For a model
    with several kinds of layers, --layers picks one; the default is layers without a window.

    Advice comes from the times of neighbours only: configs one step away, other page sizes, another
    KV cache. The times are those of sweep stores and of --tries.

    --compare A B explains two configs and shows what changed from the first to the second.

    Exit code 1 when the config is infeasible, does not compile, or has no time for another reason.

    Example: rpa-tune explain --chip v6e --family decode --model llama3-8b
    --workload azure-conv --config bkv_sz=1024,num_buffers=2

    Example: rpa-tune explain my_kernels:attention --chip v6e
    --shapes "bf16[8,1024,128] bf16[8,1024,128] s32[8](512)"
    """
    if options["trace_step"] and options["trace"] is None:
        raise UsageError("--trace-step says what --trace writes, which is not given")
    if target is not None:
        asked = Asked(
            target=target, pair=pair, trace=options["trace"], trace_step=options["trace_step"],
            dump=options["dump"], as_json=as_json, cache=cache, deadline_s=deadline,
        )  # fmt: skip
        if not explain_function(asked, options):
            raise click.exceptions.Exit(1)
        return
    for name in _OF_FUNCTIONS:
        if options.pop(name):
            raise UsageError(f"--{name} is of a function, MODULE:FUNCTION, which is not given")
    for name in ("family", "model"):
        if options[name] is None:
            raise click.MissingParameter(param_hint=f"'--{name}'", param_type="option")
    _explain_candidate(options, cache=cache, deadline=deadline, pair=pair, as_json=as_json)


def _explain_candidate(
    options: dict[str, Any],
    *,
    cache: Path,
    deadline: float,
    pair: tuple[str, str] | None,
    as_json: bool,
) -> None:
    """Explains a family's candidate, or two."""
    tries, stores, trace = (options.pop(name) for name in ("tries", "stores", "trace"))
    files = {name: options.pop(name) for name in ("trace_step", "dump")}
    second_opinion = options.pop("second_opinion")
    if pair is not None:
        _refuse_beside_compare(
            options["config_text"], tries=tries, store=stores, trace=trace, dump=files["dump"],
            second_opinion=second_opinion,
        )  # fmt: skip
        _compare(pair, options, cache=cache, deadline_s=deadline, as_json=as_json)
        return
    question, opinion = resolve_question(cache=cache, **options), None
    with phases_on_stderr() as on_phase:
        found = explain_question(
            question, tries=tries, stores=stores, cache=cache, deadline_s=deadline, said=_say,
            on_phase=on_phase,
        )  # fmt: skip
        if second_opinion and found.ok:
            on_phase("second opinion")
            opinion = ask_compiler(question, deadline_s=deadline)
    _show(found, opinion, as_json=as_json)
    if not found.ok:
        raise click.exceptions.Exit(1)
    if files["dump"] is not None:
        save_schedules(found.question.candidate, cache_dir=cache, path=files["dump"])
    if trace is not None:
        write_heaviest(
            found.question.candidate,
            [wb.batch for wb in found.question.workload.batches],
            found.evaluation.batch_us,
            cache_dir=cache,
            path=trace,
            one_step=files["trace_step"],
        )


def _show(found: Explanation, opinion: SecondOpinion | None, *, as_json: bool) -> None:
    if as_json:
        more = {} if opinion is None else {"second_opinion": opinion.to_dict()}
        print_json(to_dict(found) | more)
        return
    print_explanation(found)
    if opinion is not None:
        print_second_opinion(opinion)


def _refuse_beside_compare(config_text: str, **others: Any) -> None:
    """Refuses options that say something of one config.

    Raises:
      UsageError: There is one.
    """
    given = [
        name.removesuffix("s") if name == "stores" else name for name in others if others[name]
    ]
    if unused := (["config"] if config_text else []) + given:
        name = unused[0].replace("_", "-")
        raise UsageError(
            f"--{name} is of no use beside --compare, which has two configs of its own"
        )


def _compare(
    pair: tuple[str, str],
    options: dict[str, Any],
    *,
    cache: Path,
    deadline_s: float,
    as_json: bool,
) -> None:
    """Explains two configs, and prints them side by side."""
    questions = [resolve_question(**{**options, "config_text": text}, cache=cache) for text in pair]
    explained = []
    for name, question in zip("AB", questions, strict=True):
        with phases_on_stderr(name) as on_phase:
            side = explain_question(
                question, cache=cache, deadline_s=deadline_s, said=_say, advises=False,
                on_phase=on_phase,
            )  # fmt: skip
        explained.append(side)
    found = compare(*explained)
    if as_json:
        print_json(found.to_dict())
    else:
        print_comparison(found)


def _say(text: str) -> None:
    click.echo(text, err=True)


def to_dict(found: Explanation) -> dict[str, Any]:
    """The JSON form: the evaluation, its metrics on the top level, and a closer look per batch."""
    question, evaluation = found.question, found.evaluation
    weights = [wb.weight for wb in question.workload.batches]
    return {
        **dict.fromkeys(ALWAYS),
        **evaluation.metrics,
        "status": evaluation.status.value,
        "detail": evaluation.detail,
        "fidelity": evaluation.fidelity.name.lower(),
        "time_us": evaluation.time_us,
        "lower_bound_us": found.lower_bound_us,
        **{k: v for k, v in question.candidate.to_dict().items() if k != "workload"},
        "model": question.model,
        **layers_to_dict(question.loaded),
        "workload": {"name": question.workload.name, "digest": question.workload.digest},
        "is_default_config": question.is_default,
        "batches": [
            {"weight": weight, **asdict(timeline)}
            for weight, timeline in zip(weights, found.simulation.timelines, strict=False)
        ],
        "padding": padding_note(question.candidate.problem),
        "neighbours": [n.to_dict(evaluation.time_us or 0.0) for n in found.neighbours],
        "advice": found.advice,
        "phases": found.phases,
        "lines": lines_to_dicts(found.profile.cycles if found.profile else None),
        "provenance": evaluation.provenance,
    }
