"""The Chrome trace of a simulated launch."""

import itertools
import json

import pytest
from golden import make

from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.simulate import simulate
from rpa_tune.llo.work import work_of
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


def flows(trace):
    """The arrows: (slice at its start, slice at its end)."""
    whole = [e for e in trace["traceEvents"] if e["ph"] == "X"]

    def around(end):
        (found,) = [
            e for e in whole
            if (e["pid"], e["tid"]) == (end["pid"], end["tid"])
            and e["ts"] <= end["ts"] <= e["ts"] + e["dur"]
        ]  # fmt: skip
        return found

    starts = {e["id"]: e for e in trace["traceEvents"] if e["ph"] == "s"}
    ends = {e["id"]: e for e in trace["traceEvents"] if e["ph"] == "f"}
    assert set(starts) == set(ends)
    return [(around(starts[number]), around(ends[number])) for number in starts]


@pytest.mark.parametrize("name", NAMES)
def test_an_arrow_leads_from_a_copy_to_the_wait_that_it_ended(name):
    chip, family = make.chip_and_family(make.DUMPS / name)
    program, machine = make.program(name), load_machine(chip)
    trace = report.make_trace(program, machine, make.operands(family))
    us = 1e6 / machine.value("clock_hz")
    found = flows(trace)
    waits = [e for e in slices(trace, "waits") if e["name"].startswith("dma_wait")]
    assert len(waits) > 0
    assert {id(wait) for _, wait in found} >= {id(wait) for wait in waits}
    for copy, wait in found:
        direction = "read" if "dma_wait_read" in wait["name"] else "write"
        if not wait["name"].startswith("dma_wait"):
            continue  # scalar operands
        latency = machine.value(f"{direction}_latency_cycles") * us
        arrived = copy["ts"] + copy["dur"] + latency
        # A copy alone is served more slowly than its queue goes on.
        assert wait["ts"] + wait["dur"] >= arrived - us
        assert copy["ts"] < wait["ts"] + wait["dur"]


def test_slices_are_named_by_loop_and_work():
    program = make.program(NAMES[0])
    trace = report.make_trace(
        program, load_machine("v6e"), make.operands("decode"), title="decode bkv_sz=256"
    )
    named = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"]
    assert named == ["decode bkv_sz=256 on v6e, simulated, core 0"]
    assert trace["otherData"]["kernel"] == "decode bkv_sz=256"
    names = {e["name"] for e in slices(trace, "vector issue") + slices(trace, "scalar issue")}
    assert any(name.startswith("loop ") and "matmul" in name for name in names)
    assert any("prefetch" in name for name in names)
    assert not any(name.startswith("0x") for name in names)
    for event in slices(trace, "vector issue"):
        first, last = (int(part, 16) for part in event["args"]["addresses"].split(".."))
        work = [work_of(bundle) for bundle in program.bundles[first : last + 1]]
        assert max(work, key=work.count) in event["name"]


def test_one_steady_step_is_one_trip_of_the_main_loop():
    program, machine = make.program(NAMES[1]), load_machine("v7x")
    operands = make.operands("mixed")
    whole = report.make_trace(program, machine, operands)
    step = report.make_trace(program, machine, operands, one_step=True)
    kept = [e for e in step["traceEvents"] if e["ph"] == "X"]
    assert 0 < len(kept) < len([e for e in whole["traceEvents"] if e["ph"] == "X"]) / 3
    issued = [e for e in kept if "addresses" in e["args"]]
    firsts = [e["args"]["addresses"] for e in issued]
    assert len(set(firsts)) > 1
    assert flows(step) is not None  # both ends of every arrow are there
    keys = {(e["tid"], e["ts"], e["name"]) for e in whole["traceEvents"] if e["ph"] == "X"}
    assert {(e["tid"], e["ts"], e["name"]) for e in kept} <= keys


def test_phases_cut_slices_and_stand_in_their_names():
    program, operands = make.program(NAMES[0]), make.operands("decode")
    labels = ["even" if i // 16 % 2 else "odd" for i in range(len(program.bundles))]
    plain, named = (
        report.make_trace(program, load_machine("v6e"), operands, labels=given)
        for given in ((), labels)
    )
    lanes = [slices(named, "vector issue"), slices(named, "scalar issue")]
    for event in itertools.chain(*lanes):
        first, last = (int(a, 16) for a in event["args"]["addresses"].split(".."))
        assert labels[first] == labels[last]
        assert event["name"].split(": ")[-1].startswith(labels[first])
    before = [slices(plain, "vector issue"), slices(plain, "scalar issue")]
    assert sum(map(len, lanes)) > sum(map(len, before))
    bundles = [
        sum(e["args"]["bundles"] for e in itertools.chain(*each)) for each in (lanes, before)
    ]
    assert bundles[0] == bundles[1]
