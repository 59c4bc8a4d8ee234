"""No launch of ours has an operand that its kernel never reads or writes.

libtpu 0.0.43 to 0.0.45 can read zeros by a DMA in a Pallas call that has an operand which is made
in the same jit and never used (https://github.com/jax-ml/jax/issues/39744).
`tests/aot/test_kernels_compile.py` asks the same of what is compiled.
"""

import dataclasses
import gzip
from pathlib import Path

import jax
import pytest
from never_read import operands_never_read

from rpa_kernels import FAMILIES
from rpa_kernels.slots import is_latent
from rpa_tune.compile.probe import PROBLEM
from rpa_tune.evaluate.understood import LATENT
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.known_versions import faults

NO_UPDATE = {"update_kv_cache": False}
# What adds operands, or takes the use of one away.
FEATURES = {
    "plain": {},
    "no_update": NO_UPDATE,
    "no_update_sinks_lse": {**NO_UPDATE, "has_sinks": True, "return_lse": True, "causal": False},
    "no_update_along_lanes": {
        **NO_UPDATE, "kv_layout": "seq_along_lane", "page_size": 128, "kv_dtype": "float8_e4m3fn",
    },
    "few_tree": {"decode_query_size": 4, "has_tree_mask": True},
    "no_update_few": {**NO_UPDATE, "decode_query_size": 4},
}  # fmt: skip
GOLDEN = Path(__file__).parents[2] / "golden" / "dumps"


def pallas_calls(jaxpr):
    """The equations that call a kernel, however deep."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "pallas_call":
            yield eqn
            continue
        for value in eqn.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                part = getattr(part, "jaxpr", part)
                if hasattr(part, "eqns"):
                    yield from pallas_calls(part)


def unused_arrays(call):
    """Shapes of arrays in HBM that no equation of the kernel names; what it closes over it uses.

    Scalars are read by the launch itself; see the test of schedules below.
    """
    (eqn,) = pallas_calls(jax.make_jaxpr(call.function)(*call.arguments).jaxpr)
    named = {v for inner in eqn.params["jaxpr"].eqns for v in inner.invars if not is_literal(v)}
    # A result that takes an operand's buffer uses it.
    aliased = {operand for operand, _ in eqn.params["input_output_aliases"]}
    refs = eqn.params["jaxpr"].invars[: len(eqn.invars)]
    num_scalars = eqn.params["grid_mapping"].num_index_operands
    assert num_scalars >= 4
    return [
        eqn.invars[i].aval.shape
        for i, ref in enumerate(refs)
        if i >= num_scalars and i not in aliased and ref not in named
    ]


def is_literal(var):
    return hasattr(var, "val")


FEW = ("few_tree", "no_update_few")  # of decode alone
LAUNCHES = [
    *(("decode", feature, "v6e") for feature in FEATURES),
    *(("mixed", feature, "v6e") for feature in FEATURES if feature not in FEW),
    *((name, "plain", "v6e") for name in FAMILIES if name not in ("decode", "mixed")),
    ("decode", "plain", "v5p"),  # two cores: the split among them is an operand, too
]


@pytest.mark.parametrize(("name", "feature", "chip"), LAUNCHES)
def test_a_kernel_uses_every_array_it_is_given(name, feature, chip):
    family, record = load_family(name), load_chip(chip)
    problem = dataclasses.replace(LATENT if is_latent(name) else PROBLEM, **FEATURES[feature])
    call = family.call(problem, family.default_config(problem, record.target), record)
    with call.context():
        assert unused_arrays(call) == []


def test_the_list_of_faults_says_that_no_launch_has_one():
    (fault,) = faults({"libtpu": "0.0.44"})
    assert "no launch of ours" in fault.touches


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("0.0.48/*.txt.gz")), ids=lambda p: p.stem)
def test_a_launch_copies_every_scalar_array_whether_its_kernel_asks_for_it_or_not(file):
    # As decode of one token a sequence never asks for `cu_q_lens`: it is copied into SMEM.
    schedule = gzip.decompress(file.read_bytes()).decode()
    assert operands_never_read(schedule) == set()
    assert schedule.count("_to_smem") >= 4


def test_an_operand_without_a_use_is_found():
    schedule = """
0x0 : { %s1_s0 = inlined_call_operand.hbm [shape: s32[8], index: 0, kind: input] /* operand 0 */ }
0x1 : { %s2_s4 = inlined_call_operand.hbm [shape: f32[8], index: 1, kind: input] /* operand 1 */ }
0x2 : { %s3_s6 = inlined_call_operand.hbm [shape: f32[8], index: 2, kind: input, may-alias: {2,3}] }
0x3 : { %s4_s7 = inlined_call_operand.hbm [index: 3, kind: output, may-alias: {2,3}] }
0x4 : { %s5 = dma.hbm_to_smem /*hbm=*/%s1_s0, /*size_in_granules=*/16, %s4_s7 }
"""
    assert operands_never_read(schedule) == {1}
