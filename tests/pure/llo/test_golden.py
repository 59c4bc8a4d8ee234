"""Golden dumps: parsed losslessly, simulated alike by both interpreters, timelines unchanged."""

import gzip
import json
import re

import numpy as np
import pytest
from golden import make

from rpa_tune.llo.engines import rates_of
from rpa_tune.llo.fast import run_fast
from rpa_tune.llo.interpreter import interpret
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.opcodes import Op, Slot
from rpa_tune.llo.simulate import MAX_BUNDLES, simulate

NAMES = [f"{path.parent.name}/{path.name}" for path in make.dump_files()]


def test_every_chip_and_version_has_a_dump():
    chips = {"v4", "v5e", "v5p", "v6e", "v7x"}
    # Launches of chips with two cores were not split when the first dumps were made.
    both, split = ("", make.TWO_CORES), (make.TWO_CORES,)
    cores_of = {"0.0.42.1": both, "0.0.48": split, "0.0.50.1": both, "0.0.52": split}
    assert set(NAMES) == {
        f"{version}/{chip}_{family}{cores}.txt.gz"
        for version, some in cores_of.items()
        for chip in chips
        for family in make.FAMILIES
        for cores in (some if chip in ("v4", "v5p") else ("",))
    }


@pytest.mark.parametrize("name", NAMES)
def test_timeline_is_the_golden_one(name):
    chip, _ = make.chip_and_family(make.DUMPS / name)
    timeline = simulate(make.program(name), load_machine(chip), make.operands_of(name))
    golden = json.loads(make.TIMELINES.read_text())[name]
    assert json.loads(json.dumps(make.summary(timeline))) == golden, "`make golden` rewrites"


@pytest.mark.parametrize("name", NAMES)
def test_compiled_interpreter_equals_the_oracle(name):
    chip, _ = make.chip_and_family(make.DUMPS / name)
    program, rates = make.program(name), rates_of(load_machine(chip))
    assert program.num_cores == (2 if make.TWO_CORES in name else 1)
    for core in range(program.num_cores):
        slow = interpret(program, rates, make.operands_of(name), core=core)
        fast = run_fast(program, rates, make.operands_of(name), core=core, max_bundles=MAX_BUNDLES)
        for field in ("executed", "entered", "stall_cycles"):
            assert (getattr(slow, field) == getattr(fast, field)).all(), field
        for field in ("end_cycle", "engines", "mxu_busy_cycles", "barriers", "unknown"):
            assert getattr(slow, field) == getattr(fast, field), field


@pytest.mark.parametrize("name", [name for name in NAMES if make.TWO_CORES in name])
def test_two_cores_do_together_what_one_does(name):
    chip, family = make.chip_and_family(make.DUMPS / name)
    machine, program = load_machine(chip), make.program(name)
    both = simulate(program, machine, make.operands_of(name))
    assert both.total_cycles == max(both.core_cycles)
    # Either core alone: the other's share is empty.
    halves = []
    places = np.array(make.SPLITS[family], np.int32).reshape(3, -1)
    for start, end in ((0, 1), (1, 2)):
        operands = make.operands_of(name) | {4: places[[start, end, end]].reshape(-1)}
        halves.append(simulate(program, machine, operands))
    assert [half.core_cycles[0] for half in halves] == list(both.core_cycles)
    for field in ("read_bytes", "write_bytes", "num_copies"):
        assert sum(getattr(half, field) for half in halves) == getattr(both, field)
    assert "each core gets half of HBM's bandwidth" in both.guesses


@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_a_dump_is_lost(name):
    text = gzip.decompress((make.DUMPS / name).read_bytes()).decode()
    program = make.program(name)
    lines = re.findall(r"^ *(?:0x[0-9a-f]+|0) .*$", text, re.MULTILINE)
    assert len(program.bundles) == len(lines)
    instructions = sum(
        part.strip() != "" for line in lines for part in line[line.index("{") + 1 :].split(";;")
    ) - len(re.findall(r"\{\}(?: /\*.*\*/)?$", "\n".join(lines), re.MULTILINE))
    slots = sum(program.slot_total(slot) for slot in Slot if slot not in (Slot.FILL, Slot.SPILL))
    # EUP instructions take a VALU slot as well; phis, operands, address casts and what
    # waits for the other core take none (static-per-bundle-utilization).
    words = ("sphi", "int_to_ptr", "vpush.ccrf", "vsyncadd.remote", "vwait.ge.trace")
    free = sum(len(re.findall(rf" = {re.escape(word)}[. ]", text)) for word in words)
    free += len(program.operands)
    assert instructions == slots - program.slot_total(Slot.EUP) + free


@pytest.mark.parametrize("name", NAMES)
def test_waits_and_flags_balance(name):
    chip, _ = make.chip_and_family(make.DUMPS / name)
    program = make.program(name)
    timeline = simulate(program, load_machine(chip), make.operands_of(name))
    assert not timeline.unknown, "every matmul result popped, every copy awaited"
    assert sum(timeline.cycles_by_owner.values()) == timeline.total_cycles
    assert any(item.op is Op.MATMUL for b in program.bundles for item in b.instructions)
