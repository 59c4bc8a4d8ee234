"""Studies side by side, and dealt out to shards: what runs when changes nothing but the time."""

import threading
from dataclasses import replace

import pytest
from fake_sweep import PROBLEM, FormulaEvaluator, make_evaluators, make_study

from rpa_tune.candidate import Fidelity
from rpa_tune.errors import StoreError, UsageError
from rpa_tune.store.journal import Journal
from rpa_tune.store.shards import find_shards, parse_shard, read_others
from rpa_tune.sweep.lineup import line_up
from rpa_tune.sweep.sweep import Sweep
from rpa_tune.sweep.watch import Watch


def make_studies(num):
    return [
        make_study(name=f"study {n}", problem=replace(PROBLEM, max_num_seqs=8 + n))
        for n in range(num)
    ]


def run(path, studies, *, together, **evaluators):
    with Journal(path) as journal:
        sweep = Sweep(
            evaluators=make_evaluators(**evaluators),
            journal=journal,
            watch=Watch(),
            num_together=together,
        )
        return {r.study.name: (r.decision, r.answers) for r in sweep.run(studies)}, sweep.num_asked


def test_side_by_side_or_in_turn_is_the_same(tmp_path):
    studies = make_studies(7)
    in_turn = run(tmp_path / "a", studies, together=1)
    beside = run(tmp_path / "b", studies, together=7, delay_s=0.002)
    assert in_turn == beside
    assert len(in_turn[0]) == 7


def test_studies_do_run_side_by_side(tmp_path):
    """The second and third study meet at a barrier; one alone would break it."""
    barrier = threading.Barrier(2, timeout=20)
    studies = make_studies(3)

    class Meeting(FormulaEvaluator):
        def evaluate_all(self, candidates, workload):
            if candidates[0].problem != studies[0].problem:
                barrier.wait()
            yield from super().evaluate_all(candidates, workload)

    evaluators = make_evaluators()
    evaluators[Fidelity.ANALYTICAL] = Meeting(Fidelity.ANALYTICAL)
    with Journal(tmp_path / "s") as journal:
        sweep = Sweep(evaluators=evaluators, journal=journal, watch=Watch(), num_together=2)
        assert len(list(sweep.run(studies))) == 3
        barrier.abort()
        studies = make_studies(4)[:1] + make_studies(5)[4:]
        sweep = Sweep(evaluators=evaluators, journal=journal, watch=Watch(), num_together=2)
        results = sweep.run(studies)
        next(results)
        with pytest.raises(threading.BrokenBarrierError):  # a study's error is the sweep's
            next(results)


def test_the_same_question_of_two_studies_is_asked_once(tmp_path):
    study = make_study()
    twins = [study, replace(study, name="twin")]
    evaluators = make_evaluators(delay_s=0.01)
    with Journal(tmp_path / "s") as journal:
        sweep = Sweep(evaluators=evaluators, journal=journal, watch=Watch(), num_together=2)
        threads = [threading.Thread(target=sweep.run_study, args=(twin,)) for twin in twins]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    asked = [candidate.digest for candidate in evaluators[Fidelity.SIMULATED].asked]
    assert len(asked) == len(set(asked)) == study.search.simulate


@pytest.mark.parametrize("num_shards", [1, 3, 4])
def test_every_study_has_one_shard_and_waits_for_its_own_only(num_shards):
    studies = make_studies(13)
    places = line_up(studies, num_shards)
    assert [place.index for place in places] == list(range(13))
    sizes = [sum(p.shard == n for p in places) for n in range(1, num_shards + 1)]
    assert max(sizes) - min(sizes) <= 1
    for place in places:
        assert all(places[t].shard == place.shard and t < place.index for t in place.teachers)
    assert any(place.teachers for place in places)


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/3"])
def test_bad_shards(text):
    with pytest.raises(UsageError, match="not a shard"):
        parse_shard(text)


def test_shards_find_each_other(tmp_path):
    store = tmp_path / "plan.jsonl"
    assert find_shards(store) == {}
    assert find_shards(tmp_path / "no" / "plan.jsonl") == {}
    for text in ("2/2", "1/2"):
        with Journal(parse_shard(text).path(store)):
            pass
    found = find_shards(store)
    assert [str(shard) for shard in found] == ["1/2", "2/2"]
    assert [c.evaluations for c in read_others(store, store)] == [(), ()]
    parse_shard("1/3").path(store).touch()
    with pytest.raises(StoreError, match="shards of both 2 and 3 parts"):
        find_shards(store)
