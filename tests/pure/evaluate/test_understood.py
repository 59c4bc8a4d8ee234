"""The probe before a sweep: what it asks, what it says of a compiler that it does not know."""

import gzip
from pathlib import Path

import pytest
from golden import make

from rpa_kernels import FAMILIES
from rpa_tune.candidate import Status
from rpa_tune.compile.cache import CompileCache, Compiled, compile_key
from rpa_tune.compile.failure import Failure, FailureKind, Reply
from rpa_tune.errors import DumpError
from rpa_tune.evaluate import understood
from rpa_tune.evaluate.evaluator import find_obstacle
from rpa_tune.evaluate.simulate_task import SimulateAnswer
from rpa_tune.evaluate.simulated import SimulatedEvaluator
from rpa_tune.evaluate.understood import _task, probe_all, read_schedule, require_understood
from rpa_tune.hw.chip import load_chip, load_chips
from rpa_tune.workload.workload import WeightedBatch, Workload

V6E, V7X = load_chip("v6e"), load_chip("v7x")
GOLDEN = make.DUMPS / "0.0.42.1" / "v6e_decode.txt.gz"


class Compiler:
    """A pool whose worker writes a golden schedule, in a spelling of tomorrow on some chips."""

    def __init__(self, *strange, failure=None):
        self.strange, self.failure, self.asked, self.deadlines = strange, failure, [], []

    def map_unordered(self, function, tasks, *, deadline_s):
        self.deadlines.append(deadline_s)
        for i, task in enumerate(tasks):
            self.asked.append((task.candidate.chip.name, task.candidate.family.name))
            if self.failure is not None:
                yield Reply(index=i, seconds=1.0, failure=self.failure)
                continue
            is_strange = task.candidate.chip.name in self.strange
            text = gzip.decompress(GOLDEN.read_bytes()).decode()
            file = task.cache_dir / "plain.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text.replace("= smov ", "= smov.u128 ") if is_strange else text)
            CompileCache(task.cache_dir).save(
                compile_key(task.candidate), Compiled(status=Status.OK, bundles=file)
            )
            status = Status.NOT_UNDERSTOOD if is_strange else Status.OK
            detail = "odd" if is_strange else ""
            yield Reply(index=i, seconds=1.0, value=SimulateAnswer(status=status, detail=detail))


@pytest.mark.parametrize(("deadline_s", "probes"), [(20.0, 120.0), (1800.0, 1800.0)])
def test_a_probe_has_the_time_that_a_plan_gives_its_compiles(tmp_path, deadline_s, probes):
    pool = Compiler()
    SimulatedEvaluator(pool=pool, cache_dir=tmp_path, deadline_s=deadline_s).prepare([V6E])
    assert pool.deadlines == [probes]


def test_a_chip_is_probed_once_an_installation(tmp_path, monkeypatch):
    pool = Compiler()
    require_understood([V6E, V7X], pool, tmp_path)
    require_understood([V7X, V6E], pool, tmp_path)
    assert pool.asked == [("v6e", "decode"), ("v7x", "decode")]
    monkeypatch.setattr(understood, "simulator_digest", lambda: "another")
    require_understood([V6E], pool, tmp_path)
    assert pool.asked[2:] == [("v6e", "decode")]


def test_an_unknown_opcode_stops_with_the_opcode_the_file_and_the_recipe(tmp_path, monkeypatch):
    pool = Compiler("v7x")
    monkeypatch.setattr(understood, "versions", lambda: {
        "jax": "0.12.0.1", "jaxlib": "0.12.0.1", "libtpu": "0.0.99",
    })  # fmt: skip
    monkeypatch.setattr(understood, "_schedule", lambda candidate, cache: cache / "plain.txt")
    for _ in range(2):  # what is not understood is asked again: the table may have grown
        with pytest.raises(DumpError) as refused:
            require_understood([V6E, V7X], pool, tmp_path)
    said = str(refused.value)
    assert "libtpu 0.0.99 for v7x" in said
    assert "does not know: `smov.u128`" in said
    file, _, line = refused.value.where.rpartition(":")
    assert "smov.u128" in Path(file).read_text().splitlines()[int(line) - 1]
    for word in ("rpa-tune opcodes --chip v7x", "opcodes.yaml", "CONTRIBUTING.md", "tested are"):
        assert word in refused.value.hint
    assert pool.asked.count(("v7x", "decode")) == 2
    assert pool.asked.count(("v6e", "decode")) == 1


def test_a_jax_that_writes_what_libtpu_cannot_read_is_told_which_pairs_go_together(
    tmp_path, monkeypatch
):
    detail = "INTERNAL: Could not convert JSON string to proto: no such field: 'debug_locations'"
    failure = Failure(kind=FailureKind.EXCEPTION, phase="compile", detail=detail)
    monkeypatch.setattr(understood, "versions", lambda: {
        "jax": "0.12.0.1", "jaxlib": "0.12.0.1", "libtpu": "0.0.47",
    })  # fmt: skip
    with pytest.raises(DumpError) as refused:
        require_understood([V6E], Compiler(failure=failure), tmp_path)
    assert "jax 0.12.0.1 and libtpu 0.0.47 for v6e cannot be made" in str(refused.value)
    assert "debug_locations" in str(refused.value)
    assert "jax 0.11.2 with libtpu 0.0.48" in refused.value.hint


def test_the_simulated_evaluator_probes_when_it_is_told_what_is_coming(tmp_path):
    evaluator = SimulatedEvaluator(pool=Compiler("v6e"), cache_dir=tmp_path)
    with pytest.raises(DumpError, match="opcodes that rpa-tune does not know"):
        evaluator.prepare([V6E])


def test_every_family_has_a_small_kernel_on_every_chip_that_can_exist(tmp_path):
    for chip in load_chips().values():
        for family in FAMILIES:
            task = _task(chip, family, tmp_path)
            batches = tuple(WeightedBatch(batch=batch, weight=1.0) for batch in task.batches)
            workload = Workload(name="probe", source="", batches=batches)
            candidate = task.candidate.__class__(
                **{name: getattr(task.candidate, name) for name in ("family", "problem", "config")},
                chip=chip, workload=workload.digest,
            )  # fmt: skip
            assert find_obstacle(candidate, workload) == ""


def test_schedules_are_read_packed_and_plain_and_damage_is_an_error(tmp_path):
    (found,) = probe_all([V6E], ["decode"], Compiler(), tmp_path)
    assert found.file.suffix == ".gz"
    assert read_schedule(found.file) == (tmp_path / "plain.txt").read_text()
    torn = tmp_path / "torn.gz"
    torn.write_bytes(found.file.read_bytes()[:50])
    with pytest.raises(DumpError, match="cannot read a schedule"):
        read_schedule(torn)
