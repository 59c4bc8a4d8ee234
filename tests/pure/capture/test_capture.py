"""Recording a live engine: nothing lost but the last line, nothing in the server's way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rpa_tune.capture import Capture
from rpa_tune.capture import writer as capture_module
from rpa_tune.capture.reader import is_recording, load_recording, write_steps
from rpa_tune.errors import TraceError
from rpa_tune.workload.engine import SimulatedEngine
from rpa_tune.workload.knobs import EngineKnobs
from rpa_tune.workload.request import Request
from rpa_tune.workload.workload import load_workload

HEADER = '{"schema":"rpa-capture/1","page_size":null,"every":1}\n'


def launch(q: list[int], kv: list[int], num_decode: int, pad: int = 8) -> dict[str, np.ndarray]:
    """Arrays as an engine has them: padded to static shapes."""
    cu = np.full(pad + 1, sum(q))
    cu[: len(q) + 1] = np.cumsum([0, *q])
    return {
        "kv_lens": np.array(kv + [0] * (pad - len(kv))),
        "cu_q_lens": cu,
        "distribution": np.array([num_decode, num_decode, len(q)]),
    }


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def wait_until(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_was_launched_is_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    with Capture(path, page_size=16) as capture:
        capture.record(**launch([1, 1, 5], [9, 20, 30], 2))
        capture.record(**launch([7], [7], 0))
    assert lines(path)[0]["page_size"] == 16
    steps = load_recording(path).steps
    assert [(s.q_lens.tolist(), s.kv_lens.tolist(), s.num_decode) for s in steps] == [
        ([1, 1, 5], [9, 20, 30], 2),
        ([7], [7], 0),
    ]
    assert capture.problem == ""


def test_buffers_may_be_reused_at_once(tmp_path: Path) -> None:
    arrays = launch([1], [1], 1)
    with Capture(tmp_path / "s.jsonl") as capture:
        for kv in range(1, 50):
            arrays["kv_lens"][0] = kv
            capture.record(**arrays)
    recorded = [s.kv_lens[0] for s in load_recording(tmp_path / "s.jsonl").steps]
    assert recorded == list(range(1, 50))


def test_needs_numpy_alone() -> None:
    code = "import rpa_tune.capture, sys; print({'jax', 'yaml', 'rpa_kernels'} & {*sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


def test_each_data_parallel_rank_is_a_launch(tmp_path: Path) -> None:
    ranks = [launch([1, 4], [5, 6], 1), launch([], [], 0), launch([3], [8], 0)]
    with Capture(tmp_path / "s.jsonl") as capture:
        capture.record(**{key: np.concatenate([r[key] for r in ranks]) for key in ranks[0]})
    steps = load_recording(tmp_path / "s.jsonl").steps
    assert [s.q_lens.tolist() for s in steps] == [[1, 4], [3]]


def test_every_nth(tmp_path: Path) -> None:
    with Capture(tmp_path / "s.jsonl", every=3) as capture:
        for kv in range(1, 10):
            capture.record(**launch([1], [kv], 1))
    assert [s.kv_lens[0] for s in load_recording(tmp_path / "s.jsonl").steps] == [3, 6, 9]


def test_files_are_bounded_rotated_and_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    capture = Capture(path, max_bytes=16384, num_files=4)
    for kv in range(1, 2001):
        capture.record(**launch([1] * 8, [kv] * 8, 8))
        if kv % 500 == 0:
            wait_until(capture._queue.empty)
    capture.close()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["s.jsonl", "s.jsonl.1", "s.jsonl.2", "s.jsonl.3"]
    assert sum(file.stat().st_size for file in files) < 16384 + 4 * 300
    recorded = [int(s.kv_lens[0]) for s in load_recording(path).steps]
    assert recorded == list(range(recorded[0], 2001))
    assert recorded[0] > 1  # the oldest are gone


def test_earlier_recording_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    for kv in (5, 6):
        with Capture(path) as capture:
            capture.record(**launch([1], [kv], 1))
    assert [s.kv_lens[0] for s in load_recording(path).steps] == [5, 6]


def test_killed_process_leaves_a_recording(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    code = (
        "import sys, time, numpy as np, rpa_tune.capture as c\n"
        "c.FLUSH_S = 0.05\n"
        "for kv in range(1, 10**6):\n"
        "    c.record(sys.argv[1], kv_lens=np.array([kv]), cu_q_lens=np.array([0, 1]),\n"
        "             distribution=np.array([1, 1, 1]))\n"
        "    time.sleep(0.001)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)])
    try:
        wait_until(lambda: path.exists() and path.stat().st_size > 2000)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    steps = load_recording(path).steps
    assert len(steps) > 20
    assert [int(s.kv_lens[0]) for s in steps] == list(range(1, len(steps) + 1))


def test_recorder_never_raises_into_the_server(tmp_path: Path, caplog) -> None:
    with Capture(tmp_path / "s.jsonl") as capture:
        capture.record(kv_lens=["a"], cu_q_lens=[0], distribution=[1, 1, 1])
        capture.record(**launch([1], [1], 1))
    assert "invalid literal" in capture.problem
    assert "recording of" in caplog.text


def test_device_arrays_are_refused_not_fetched(tmp_path: Path) -> None:
    device_array = type("ArrayImpl", (), {"__module__": "jaxlib._jax"})()
    with Capture(tmp_path / "s.jsonl") as capture:
        capture.record(kv_lens=device_array, cu_q_lens=[0], distribution=[1, 1, 1])
    assert "capture needs host arrays" in capture.problem


def test_unwritable_path_ends_the_recording_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    capture = Capture(tmp_path / "file" / "s.jsonl")
    for _ in range(10_000):  # more than the queue holds
        capture.record(**launch([1], [1], 1))
    capture.close()
    assert "NotADirectoryError" in capture.problem


def test_one_line_hook_records_and_survives(tmp_path: Path, monkeypatch, caplog) -> None:
    def broken(path: str) -> Capture:
        raise RuntimeError("can't start new thread")

    path = str(tmp_path / "s.jsonl")
    capture_module.record(path, **launch([1], [1], 1))
    capture_module.record(path, **launch([2], [2], 0))
    capture_module._captures.pop(path).close()
    assert len(load_recording(Path(path)).steps) == 2
    monkeypatch.setattr(capture_module, "Capture", broken)
    capture_module.record(str(tmp_path / "x"), **launch([1], [1], 1))
    assert "is not recorded: can't start new thread" in caplog.text


@pytest.mark.parametrize("fields", [{"num_files": 0}, {"every": 0}, {"max_bytes": 4096}])
def test_bad_limits(tmp_path: Path, fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        Capture(tmp_path / "s.jsonl", **fields)


GOOD = '{"t":0.5,"q":[1,1],"kv":[5,6],"nd":2}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"t":0.5,"q":[1,\n', "not JSON"),
        ("[]\n", "an object is needed, got .."),
        ('{"q":[1],"kv":[1,2],"nd":0}\n', "1 query lengths and 2 context lengths"),
        ('{"q":[],"kv":[],"nd":0}\n', "0 query lengths"),
        ('{"q":[1,9],"kv":[3,8],"nd":0}\n', "sequence 1: need 1 <= q <= kv, got 9 and 8"),
        ('{"q":[1.5],"kv":[3],"nd":0}\n', "a list of token counts"),
        ('{"q":[1],"kv":[99999999999],"nd":0}\n', "a list of token counts"),
        ('{"q":[1],"kv":[3],"nd":2}\n', "need 0 to 1 decodes, got 2"),
        ('{"t":"x","q":[1],"kv":[3],"nd":1}\n', "a time in seconds is needed, got 'x'"),
        ('{"t":NaN,"q":[1],"kv":[3],"nd":1}\n', "a time in seconds is needed, got nan"),
        ('{"q":[1],"kv":[3],"nd":1,"dropped":"5"}\n', "a number of launches is needed, got '5'"),
        ('{"q":' + "9" * 5000 + "}\n", "not JSON"),
        ("[" * 100_000 + "\n", "not JSON"),
    ],
)
def test_bad_lines_say_where_and_can_be_dropped(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(HEADER + GOOD + line + GOOD)
    with pytest.raises(TraceError, match=message) as caught:
        load_recording(path)
    assert caught.value.where.startswith(f"{path}:3")
    recording = load_recording(path, drop_bad=True)
    assert len(recording.steps) == 2
    assert recording.dropped == {"bad launch": 1}


def test_torn_last_line_is_dropped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    for cut in range(1, len(GOOD)):
        path.write_text(HEADER + GOOD + GOOD[:cut])
        recording = load_recording(path)
        if cut < len(GOOD) - 1:
            assert len(recording.steps) == 1
            assert recording.dropped == {"torn last line": 1}
        else:  # only the line's end is missing
            assert len(recording.steps) == 2


@pytest.mark.parametrize("text", ["", "{}\n", '{"schema":"rpa-capture/9"}\n', "text\n"])
def test_what_is_no_recording(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(text)
    with pytest.raises(TraceError, match="not a recording"):
        load_recording(path)
    assert is_recording(path) == ("rpa-capture" in text)


def test_recording_without_launches(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(HEADER)
    with pytest.raises(TraceError, match="no launches"):
        load_recording(path)


def test_drafts_counted_as_decodes_become_mixed(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(HEADER + '{"t":0,"q":[4,1,9],"kv":[40,10,9],"nd":2}\n')
    (step,) = load_recording(path).steps
    assert step.q_lens.tolist() == [1, 4, 9]
    assert step.kv_lens.tolist() == [10, 40, 9]
    assert step.num_decode == 1


def test_recorded_engine_makes_the_same_workload(tmp_path: Path) -> None:
    requests = [Request(arrival_s=i / 50, prompt_tokens=20 + i, output_tokens=9) for i in range(80)]
    steps = list(SimulatedEngine(requests, EngineKnobs(block_size=16, max_model_len=256)).run())
    path = tmp_path / "s.jsonl"
    with Capture(path) as capture:
        for step in steps:
            capture.record(
                **launch(step.q_lens.tolist(), step.kv_lens.tolist(), step.num_decode, pad=64)
            )
    written = tmp_path / "written.jsonl"
    write_steps(written, steps, block_size=16, page_tables=True)
    one, two = (load_workload(str(p), page_size=16) for p in (path, written))
    assert one.batches == two.batches
    assert json.loads(written.read_text().splitlines()[1])["pages"] == [
        list(row) for row in steps[0].page_table(16)
    ]
