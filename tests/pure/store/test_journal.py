"""The store under kills, torn lines, full disks and second writers."""

import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from fake_sweep import FormulaEvaluator, make_study

from rpa_tune.candidate import Correctness, Evaluation, Fidelity, Status
from rpa_tune.errors import StoreError
from rpa_tune.store import codec, journal
from rpa_tune.store.codec import stamp_of
from rpa_tune.store.journal import Journal

TESTS = Path(__file__).resolve().parents[2]
EVALUATOR = FormulaEvaluator(Fidelity.SIMULATED)


def answers(count):
    study = make_study()
    configs = study.space().configs[:count]
    return [EVALUATOR.answer(study.candidate(config)) for config in configs]


def write(path, evaluations):
    with Journal(path) as store:
        for evaluation in evaluations:
            store.append(evaluation)


def test_what_was_written_is_read_back(tmp_path):
    path = tmp_path / "deep" / "store.jsonl"
    expected = answers(5)
    write(path, expected)
    assert journal.read(path).evaluations == tuple(expected)
    with Journal(path) as store:
        for evaluation in expected:
            stamp = stamp_of(evaluation.provenance)
            assert store.find(evaluation.candidate, Fidelity.SIMULATED, stamp) == evaluation
            assert store.find(evaluation.candidate, Fidelity.ANALYTICAL, stamp) is None


def test_schema_is_in_line_one_and_an_unknown_one_is_refused(tmp_path):
    path = tmp_path / "store.jsonl"
    write(path, answers(1))
    text = path.read_text()
    assert text.startswith('{"schema":"rpa-store/1"}\n')
    path.write_text(text.replace("rpa-store/1", "rpa-store/99", 1))
    for use in (journal.read, Journal):
        with pytest.raises(StoreError, match="rpa-store/99"):
            use(path)
    for other in ("not a store\n", "[" * 100_000 + "\n"):
        path.write_text(other)
        with pytest.raises(StoreError, match="not a store"):
            Journal(path)
        assert path.read_text() == other


def test_any_prefix_of_a_store_is_a_store(tmp_path):
    """Cut at every byte of the header and of the last two records."""
    path = tmp_path / "store.jsonl"
    expected = answers(3)
    write(path, expected)
    data = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    cuts = [*range(ends[0] + 1), *range(ends[1], len(data) + 1)]
    for cut in cuts:
        path.write_bytes(data[:cut])
        whole = max(0, sum(end <= cut for end in ends) - 1)
        assert journal.read(path).evaluations == tuple(expected[:whole]), cut
        write(path, expected[whole:])
        assert path.read_bytes() == data, cut


def test_a_damaged_line_costs_that_line_only(tmp_path):
    path = tmp_path / "store.jsonl"
    expected = answers(3)
    write(path, expected)
    lines = path.read_bytes().splitlines(keepends=True)
    for bad in (b"\0" * 40 + b"\n", lines[2].replace(b'"bkv_sz":', b'"bkv_sz":1'), b"{}\n"):
        path.write_bytes(b"".join([*lines[:2], bad, *lines[3:]]))
        contents = journal.read(path)
        assert contents.evaluations == (expected[0], expected[2])
        assert contents.damaged_lines == (3,)
        with Journal(path) as store:
            assert store.damaged_lines == (3,)
            assert len(store) == 2


def test_a_second_writer_is_refused_and_a_reader_is_not(tmp_path):
    path = tmp_path / "store.jsonl"
    with Journal(path) as store:
        store.append(answers(1)[0])
        code = (
            "from rpa_tune.store import journal; from pathlib import Path; import sys\n"
            "path = Path(sys.argv[1])\n"
            "print(len(journal.read(path).evaluations))\n"
            "try: journal.Journal(path)\n"
            "except journal.StoreError as error: print(error)\n"
        )
        run = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
        )
        assert run.stdout.startswith("1\nanother sweep is writing")
    write(path, answers(2)[1:])
    assert len(journal.read(path).evaluations) == 2


def test_a_refused_store_gives_the_lock_back(tmp_path):
    path = tmp_path / "store.jsonl"
    path.write_text("rubbish\n")
    for _ in range(2):
        with pytest.raises(StoreError, match="not a store"):
            Journal(path)


def test_a_killed_writer_loses_nothing_and_frees_the_lock(tmp_path):
    path = tmp_path / "store.jsonl"
    code = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from fake_sweep import FormulaEvaluator, make_study
        from rpa_tune.candidate import Fidelity
        from rpa_tune.store.journal import Journal
        study = make_study()
        store = Journal(Path(sys.argv[1]), sync_interval_s=1000)
        for config in study.space().configs[:7]:
            store.append(FormulaEvaluator(Fidelity.SIMULATED).answer(study.candidate(config)))
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)], env={**os.environ, "PYTHONPATH": str(TESTS)}
    )
    assert run.returncode == -9
    with Journal(path) as store:
        assert list(store.evaluations()) == answers(7)


def test_a_full_disk_is_one_clear_error_and_keeps_whole_lines(tmp_path):
    """The kernel itself cuts the write short, by a limit on the size of files."""
    path = tmp_path / "store.jsonl"
    write(path, answers(2))
    before = path.read_bytes()
    code = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from fake_sweep import FormulaEvaluator, make_study
        from rpa_tune.candidate import Fidelity
        from rpa_tune.errors import StoreError
        from rpa_tune.store.journal import Journal
        study, limit = make_study(), int(sys.argv[2])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with Journal(Path(sys.argv[1])) as store:
            config = study.space().configs[5]
            try:
                store.append(FormulaEvaluator(Fidelity.SIMULATED).answer(study.candidate(config)))
            except StoreError as error:
                print(error)
    """)
    run = subprocess.run(
        [sys.executable, "-c", code, str(path), str(len(before) + 100)],
        env={**os.environ, "PYTHONPATH": str(TESTS)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "cannot write to the store: File too large" in run.stdout
    assert "make room" in run.stdout
    assert path.read_bytes() == before


def test_a_small_file_system_that_fills_up(tmp_path):
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", tmp_path], capture_output=True
        ).returncode
    ):
        pytest.skip("cannot mount a small file system here (needs root)")
    try:
        path = tmp_path / "store.jsonl"
        with Journal(path) as store:

            def fill():
                for evaluation in answers(40):
                    store.append(evaluation)

            with pytest.raises(StoreError, match="No space left on device"):
                fill()
        contents = journal.read(path)
        assert not contents.damaged_lines
        assert contents.evaluations == tuple(answers(len(contents.evaluations)))
        assert len(contents.evaluations) > 3
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_answers_of_other_kernels_or_compilers_are_not_reused(tmp_path):
    asked = {
        Fidelity.SIMULATED: {"kernel", "simulator", "jax", "libtpu", "settings"},
        Fidelity.MEASURED: {"kernel", "jax", "libtpu", "settings"},
        Correctness.INTERPRETED: {"kernel", "jax", "libtpu", "settings", "verifier"},
    }
    with Journal(tmp_path / "store.jsonl") as store:
        for fidelity, keys in asked.items():
            evaluation = replace(answers(1)[0], fidelity=fidelity)
            store.append(evaluation)
            for key in codec.STAMP_KEYS:
                changed = stamp_of({**evaluation.provenance, key: "another"}, fidelity)
                found = store.find(evaluation.candidate, fidelity, changed)
                assert found == (None if key in keys else evaluation), (fidelity, key)


def test_a_crash_is_asked_again_once(tmp_path):
    crash = replace(answers(1)[0], status=Status.CRASHED, time_us=None, batch_us=())
    stamp = stamp_of(crash.provenance)
    with Journal(tmp_path / "store.jsonl") as store:
        store.append(crash)
        assert store.find(crash.candidate, Fidelity.SIMULATED, stamp) is None
        store.append(crash)
        assert store.find(crash.candidate, Fidelity.SIMULATED, stamp) == crash


def test_fresh_keeps_the_file_but_answers_nothing_from_it(tmp_path):
    path = tmp_path / "store.jsonl"
    old = answers(2)
    write(path, old)
    with Journal(path, ignore_known=True) as store:
        stamp = stamp_of(old[0].provenance)
        assert store.find(old[0].candidate, Fidelity.SIMULATED, stamp) is None
        new = replace(old[0], time_us=1.0)
        store.append(new)
    with Journal(path) as store:
        assert store.find(old[0].candidate, Fidelity.SIMULATED, stamp) == new
        assert len(store) == 2


def test_numbers_that_are_not_finite_are_refused():
    evaluation: Evaluation = replace(answers(1)[0], time_us=float("inf"))
    with pytest.raises(ValueError, match="Out of range float"):
        codec.encode(evaluation)
