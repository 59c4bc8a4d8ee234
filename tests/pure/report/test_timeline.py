"""The Chrome trace of a simulated launch."""

import itertools
import json

import pytest
from golden import make

from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.simulate import simulate
from rpa_tune.report import timeline as report

NAMES = ["0.0.42.1/v6e_decode.txt.gz", "0.0.42.1/v7x_mixed.txt.gz"]


def slices(trace, lane):
    (tid,) = (
        e["tid"]
        for e in trace["traceEvents"]
        if e["name"] == "thread_name" and e["args"]["name"] == lane
    )
    return [e for e in trace["traceEvents"] if e["ph"] == "X" and e["tid"] == tid]


@pytest.mark.parametrize("name", NAMES)
def test_the_trace_shows_what_the_timeline_counts(name, tmp_path):
    chip, family = make.chip_and_family(make.DUMPS / name)
    machine, operands = load_machine(chip), make.operands(family)
    path = tmp_path / "out.json"
    assert report.write_trace(make.program(name), machine, operands, path) == 0
    trace = json.loads(path.read_text())
    timeline = simulate(make.program(name), machine, operands)

    reads = slices(trace, "copies HBM to VMEM")
    assert sum(e["args"]["bytes"] for e in reads) == timeline.read_bytes
    issued = slices(trace, "vector issue") + slices(trace, "scalar issue")
    assert sum(e["args"]["bundles"] for e in issued) == timeline.num_bundles
    waits = sum(e["dur"] for e in slices(trace, "waits"))
    bundles_us = timeline.num_bundles / machine.value("clock_hz") * 1e6
    assert waits + bundles_us == pytest.approx(timeline.time_us, rel=1e-6)
    units = [
        e for n in range(8) for e in trace["traceEvents"] if e["ph"] == "X" and e["tid"] == 10 + n
    ]
    assert sum(e["dur"] for e in units) == pytest.approx(
        timeline.mxu_busy_cycles / machine.value("clock_hz") * 1e6
    )


def test_slices_of_a_lane_do_not_overlap():
    trace = report.make_trace(make.program(NAMES[0]), load_machine("v6e"), make.operands("decode"))
    for lane in ("vector issue", "scalar issue", "waits", "MXU 0", "copies HBM to VMEM"):
        ordered = sorted(slices(trace, lane), key=lambda e: e["ts"])
        for before, after in itertools.pairwise(ordered):
            assert after["ts"] >= before["ts"] + before["dur"] - 1e-6


def test_a_long_launch_is_cut_and_says_so(monkeypatch):
    monkeypatch.setattr(report, "MAX_EVENTS", 10)
    trace = report.make_trace(make.program(NAMES[0]), load_machine("v6e"), make.operands("decode"))
    assert trace["otherData"]["slices left out"] > 0


def test_each_core_is_a_process_of_its_own():
    name = f"0.0.42.1/v5p_decode{make.TWO_CORES}.txt.gz"
    machine, operands = load_machine("v5p"), make.operands_of(name)
    trace = report.make_trace(make.program(name), machine, operands)
    timeline = simulate(make.program(name), machine, operands)
    events = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    names = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"]
    assert [name.rpartition(", ")[2] for name in names] == ["core 0", "core 1"]
    for core, cycles in enumerate(timeline.core_cycles):
        own = [e for e in events if e["pid"] == core + 1]
        end_us = max(e["ts"] + e["dur"] for e in own if "bundles" in e.get("args", {}))
        assert end_us == pytest.approx(cycles / machine.value("clock_hz") * 1e6, rel=1e-6)
