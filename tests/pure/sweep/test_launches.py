"""Which shape each step is padded to, for all steps at once: held against one at a time."""

import pytest

from rpa_tune.families.registry import load_family
from rpa_tune.models.server import Server
from rpa_tune.sweep.launches import Launches
from rpa_tune.workload.build import serve
from rpa_tune.workload.spec import read_spec

SPEC = {
    "requests": {"count": 60, "prompt_tokens": {"lognormal": {"median": 40, "sigma": 1.0}},
                 "output_tokens": {"lognormal": {"median": 9, "sigma": 0.5}}},
    "arrivals": {"process": "poisson", "request_rate": 30},
    "engine": {"max_num_seqs": 12, "max_num_batched_tokens": 48, "max_model_len": 512,
               "long_prefill_token_threshold": 8},
    "compress": {"steady_state": False},
}  # fmt: skip
SERVERS = [
    Server(model="llama3-8b", chip="v6e", max_num_seqs=12, max_num_batched_tokens=48,
           bucket_seqs=True),
    Server(model="llama3-8b", chip="v6e", max_num_seqs=12, max_num_batched_tokens=128,
           engine="sglang-jax", page_size=64),
    Server(model="llama3-8b", chip="v6e", max_num_seqs=12, max_num_batched_tokens=48,
           only_tokens=(16,), uses_prefill=True),
]  # fmt: skip


@pytest.fixture(scope="module", params=[{}, {"chunk_prefill_size": 8}, {"decode_query_size": 4}],
                ids=str)  # fmt: skip
def launches(request) -> Launches:
    return Launches(serve(read_spec({**SPEC, **request.param}, page_size=64)))


def counts(step) -> dict[str, int]:
    return {"decode": step.num_decode, "prefill": step.num_prefill, "mixed": step.num_mixed}


@pytest.mark.parametrize("server", SERVERS, ids=["sequences", "sglang", "one"])
def test_each_step_lands_in_the_first_shape_that_takes_it(launches, server) -> None:
    shapes = list(server.shapes())
    landing = launches.landing(shapes)
    held = launches.held_by(shapes)
    for number, step in enumerate(launches.served.steps):
        size = int(step.q_lens.sum()), step.num_seqs
        slots = {slot for slot, count in counts(step).items() if count}
        first = next(
            (i for i, s in enumerate(shapes) if slots <= set(s.families) and s.holds(*size)),
            len(shapes),
        )
        assert landing[number] == first
        assert held[number] == any(shape.holds(*size) for shape in shapes)
    assert len(set(landing.tolist())) > 1


@pytest.mark.parametrize("family", ["decode", "prefill", "mixed"])
def test_a_step_launches_the_families_of_its_sequences(launches, family) -> None:
    slots = load_family(family).slots
    found = launches.launching(load_family(family))
    expected = [any(counts(step)[slot] for slot in slots) for step in launches.served.steps]
    assert found.tolist() == expected


def test_the_steps_have_sequences_in_every_slot() -> None:
    steps = serve(read_spec({**SPEC, "chunk_prefill_size": 8}, page_size=64)).steps
    for slot in ("decode", "prefill", "mixed"):
        assert any(counts(step)[slot] for step in steps)
