"""Golden dumps: parsed losslessly, simulated alike by both interpreters, timelines unchanged."""

import gzip
import json
import re

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
    assert set(NAMES) == {
        f"{version}/{chip}_{family}.txt.gz"
        for version in ("0.0.42.1", "0.0.50.1")
        for chip in chips
        for family in make.FAMILIES
    }


@pytest.mark.parametrize("name", NAMES)
def test_timeline_is_the_golden_one(name):
    chip, family = make.chip_and_family(make.DUMPS / name)
    timeline = simulate(make.program(name), load_machine(chip), make.operands(family))
    golden = json.loads(make.TIMELINES.read_text())[name]
    assert json.loads(json.dumps(make.summary(timeline))) == golden, "`make golden` rewrites"


@pytest.mark.parametrize("name", NAMES)
def test_compiled_interpreter_equals_the_oracle(name):
    chip, family = make.chip_and_family(make.DUMPS / name)
    program, rates = make.program(name), rates_of(load_machine(chip))
    slow = interpret(program, rates, make.operands(family))
    fast = run_fast(program, rates, make.operands(family), max_bundles=MAX_BUNDLES)
    for field in ("executed", "entered", "stall_cycles"):
        assert (getattr(slow, field) == getattr(fast, field)).all(), field
    for field in ("end_cycle", "engines", "mxu_busy_cycles", "unknown"):
        assert getattr(slow, field) == getattr(fast, field), field


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
    # EUP instructions take a VALU slot as well; phis, operands and address casts take none.
    free = sum(len(re.findall(rf" = {word}[. ]", text)) for word in ("sphi", "int_to_ptr"))
    free += len(program.operands)
    assert instructions == slots - program.slot_total(Slot.EUP) + free


@pytest.mark.parametrize("name", NAMES)
def test_waits_and_flags_balance(name):
    chip, family = make.chip_and_family(make.DUMPS / name)
    program = make.program(name)
    timeline = simulate(program, load_machine(chip), make.operands(family))
    assert not timeline.unknown, "every matmul result popped, every copy awaited"
    assert sum(timeline.cycles_by_owner.values()) == timeline.total_cycles
    assert any(item.op is Op.MATMUL for b in program.bundles for item in b.instructions)
