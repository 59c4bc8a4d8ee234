"""Which operands of our launches no kernel ever reads or writes.

libtpu 0.0.43 to 0.0.45 can read zeros by a DMA in a Pallas call that has an operand which is made
in the same jit and never used (https://github.com/jax-ml/jax/issues/39744).
`known_versions.yaml` says which launches of ours have one; this holds it to that.
"""

import dataclasses

import jax
import pytest

from rpa_tune.compile.probe import PROBLEM
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.known_versions import faults

# What adds operands, or takes the use of one away.
FEATURES = {
    "plain": ({}, set()),
    "sinks_lse": ({"has_sinks": True, "return_lse": True}, set()),
    "no_update": ({"update_kv_cache": False}, {"keys and values"}),
}
CU_Q_LENS = "cu_q_lens"  # every query of a decode step is one token


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


def unused_operands(call):
    """Positions of operands that no equation of the kernel names; what it closes over it uses."""
    (eqn,) = pallas_calls(jax.make_jaxpr(call.function)(*call.arguments).jaxpr)
    named = {v for inner in eqn.params["jaxpr"].eqns for v in inner.invars if not is_literal(v)}
    # A result that takes an operand's buffer uses it.
    aliased = {operand for operand, _ in eqn.params["input_output_aliases"]}
    refs = eqn.params["jaxpr"].invars[: len(eqn.invars)]
    return eqn, {i for i, ref in enumerate(refs) if ref not in named} - aliased


def is_literal(var):
    return hasattr(var, "val")


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("name", ["decode", "mixed"])
def test_no_operand_is_unused_but_those_that_the_list_of_faults_names(name, feature):
    changes, expected = FEATURES[feature]
    family, chip = load_family(name), load_chip("v6e")
    problem = dataclasses.replace(PROBLEM, **changes)
    call = family.call(problem, family.default_config(problem, chip.target), chip)
    with call.context():
        eqn, unused = unused_operands(call)
    kinds = {
        CU_Q_LENS if i == 2 else "keys and values" if len(eqn.invars[i].aval.shape) == 4 else str(i)
        for i in unused
    }
    assert kinds == expected | ({CU_Q_LENS} if name == "decode" else set())
    (fault,) = faults({"libtpu": "0.0.44"})
    for kind, word in (("keys and values", "update_kv_cache=False"), (CU_Q_LENS, CU_Q_LENS)):
        assert kind not in kinds or word in fault.touches
