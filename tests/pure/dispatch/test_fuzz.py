"""Whatever a table says, serving goes on; whatever a process did before, a plan is the same."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from table_rows import PROBLEM, default_config, make_row

from rpa_kernels import FAMILIES, load_family
from rpa_kernels.infeasible import Infeasible
from rpa_tune.dispatch.dispatcher import Dispatcher
from rpa_tune.errors import TableError
from rpa_tune.hw.chip import load_chip, load_chips
from rpa_tune.tables.reader import Tables, load_tables
from rpa_tune.tables.row import MAX_INTEGER, SCHEMA, Clause
from rpa_tune.tables.step import FEATURES, Step

CHIP = load_chip("v6e")
PROBLEMS = [
    PROBLEM,
    replace(PROBLEM, head_dim=64, q_dtype="float32", kv_dtype="int8", k_scale=0.5),
    replace(PROBLEM, num_kv_heads=1, page_size=4096, sliding_window=100, has_sinks=True),
    replace(PROBLEM, num_q_heads=7, num_kv_heads=7, page_size=2, max_num_tokens=8192),
]
STEPS = [
    Step.of([1, 1], [10, 20], [2, 2, 2]),
    Step.of([1, 7], [10, 200], [1, 1, 2]),
    Step.of([1, 4, 7], [90, 9, 9], [1, 2, 3]),
    Step(),
]
sizes = st.one_of(
    st.sampled_from([0, 1, 2, 3, 4, 8, 16, 100, 127, 128, 256, 512, 1024, 4096, MAX_INTEGER]),
    st.integers(0, MAX_INTEGER),
)
odd = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), sizes,
        st.sampled_from(["v6e", "decode", "tuned", "measured", *FEATURES]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=4,
)  # fmt: skip


def configs(family):
    names = load_family(family).config_type.__dataclass_fields__
    return st.fixed_dictionaries(dict.fromkeys(names, sizes))


def serve(tables, problems=PROBLEMS):
    """Plans like a server; every config that is chosen has to fit."""
    for on_miss in ("nearest", "heuristic"):
        dispatcher = Dispatcher(CHIP, tables, on_miss=on_miss)
        for problem in problems:
            assert len(dispatcher.plans(problem)) >= 3
            for step in STEPS:
                plan = dispatcher.plan(problem, step)
                assert plan in [*dispatcher.plans(problem), dispatcher.plan(problem, Step())]
                for launch in plan.launches:
                    check = load_family(launch.family).check
                    assert check(problem, launch.config, CHIP.target) is None


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_check_has_an_answer_for_any_sizes(family, data):
    record = load_family(family)
    config = record.config_type(**data.draw(configs(family)))
    for problem in PROBLEMS:
        for chip in load_chips().values():
            verdict = record.check(problem, config, chip.target)
            assert verdict is None or isinstance(verdict, Infeasible)
            assert str(verdict)  # for the log


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_rows_of_any_sizes_never_stop_a_server(family, data):
    """Rows as the reader lets them in: right names, any numbers, any rule."""
    drawn = data.draw(st.lists(configs(family), min_size=1, max_size=3))
    clauses = st.builds(
        Clause, use=st.integers(0, len(drawn) - 1), feature=st.sampled_from(FEATURES),
        at_most=st.integers(),
    )  # fmt: skip
    rule = (*data.draw(st.lists(clauses, max_size=3)), Clause(use=len(drawn) - 1))
    verdict = data.draw(st.sampled_from(["tuned", "heuristic"]))
    serve(Tables([make_row(family, configs=drawn, rule=rule, verdict=verdict)]))


def paths_of(value, path=()):
    """Every place in a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths_of(inner, (*path, name))


TWO = {"configs": [default_config(), default_config(seqs_per_step=1)],
       "rule": (Clause(use=1, feature=FEATURES[0], at_most=3), Clause(use=0))}  # fmt: skip
# A table: header and one row.
TABLE = [{"schema": SCHEMA, "chip": "v6e", "family": "decode"}, make_row(**TWO).to_dict()]


def changed(path, value):
    """A table with another value at one place; with `...`, without the place."""
    table = json.loads(json.dumps(TABLE))
    at = table
    for name in path[:-1]:
        at = at[name]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return table


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(path=st.sampled_from(list(paths_of(TABLE))[1:]), value=st.one_of(odd, st.just(...)),
       is_written=st.booleans())  # fmt: skip
@example(path=(1, "configs", 0, "bkv_sz"), value=0, is_written=True)
@example(path=(1, "configs", 0, "bkv_sz"), value=MAX_INTEGER, is_written=True)
@example(path=(1, "key", "page_size"), value=MAX_INTEGER, is_written=True)
@example(path=(1, "key", "kv_dtype"), value="float99", is_written=False)
@example(path=(0, "schema"), value=[], is_written=False)
def test_any_table_is_refused_when_loaded_or_served(tmp_path, path, value, is_written):
    """It is refused as a whole when it is read, or never again makes trouble.

    Rows of a file that is as the writer makes it are read, and refused, when they are asked for.
    """
    separators = (",", ":") if is_written else None
    lines = [json.dumps(line, separators=separators) for line in changed(path, value)]
    file = tmp_path / "v6e" / "decode.jsonl"
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(lines) + "\n")
    try:
        tables = load_tables([tmp_path])
        if is_written:
            list(tables)
    except TableError as error:
        refusal = str(error)
    else:
        serve(tables, PROBLEMS[:2])
        return
    assert str(file) in refusal


PLANS = """
import json, sys
from table_rows import make_row, default_config, PROBLEM
from pure.dispatch import test_fuzz as t
print("\\n".join(map(repr, t.plans_of(t.rows(), json.loads(sys.argv[1])))))
"""


def rows():
    tuned = default_config(seqs_per_step=1, num_buffers=2)
    rule = (Clause(use=0, feature="mean_context_tokens", at_most=64), Clause(use=1))
    return [
        make_row(problem=replace(PROBLEM, max_num_seqs=n), configs=[tuned, default_config()],
                 rule=rule)
        for n in (4, 16, 64)
    ]  # fmt: skip


def plans_of(rows, order):
    """Plans in a fixed order, of a dispatcher that was asked in another."""
    dispatcher = Dispatcher(CHIP, Tables(rows))
    asks = [(problem, step) for problem in PROBLEMS for step in STEPS]
    for i in order:
        dispatcher.plan(*asks[i])
    return [dispatcher.plan(*ask) for ask in asks]


ORDER = list(range(len(PROBLEMS) * len(STEPS)))


@settings(max_examples=25, deadline=None)
@given(
    order=st.permutations(ORDER), asked=st.integers(0, len(ORDER)), table=st.permutations([0, 1, 2])
)
def test_a_plan_depends_on_no_history_and_no_order_of_rows(order, asked, table):
    shuffled = plans_of([rows()[i] for i in table], order[:asked])
    assert repr(shuffled) == repr(plans_of(rows(), []))
    assert len(set(shuffled)) > 8


def test_every_host_of_a_mesh_plans_alike():
    """Other processes, with other hash seeds, time zones and histories."""
    tests = Path(__file__).parents[2]
    outputs = set()
    for seed, order in (("1", []), ("2", ORDER[::-1])):
        run = subprocess.run(
            [sys.executable, "-c", PLANS, json.dumps(order)], text=True, capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(tests), "TZ": f"X{seed}"},
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        outputs.add(run.stdout)
    (output,) = outputs
    assert output == "\n".join(map(repr, plans_of(rows(), []))) + "\n"
