"""`advise` with the real compiler, on a model of one KV head a device."""

import pytest

import rpa_tune
from rpa_tune.models.server import Server

pytestmark = [pytest.mark.aot, pytest.mark.slow]

REQUESTS = "arrival_s,prompt_tokens,output_tokens\n" + "".join(
    f"{i / 50},{200 + 37 * (i % 11)},{20 + i % 7}\n" for i in range(40)
)


def test_a_small_question_is_answered_with_simulated_times_and_resumed_from_the_cache(tmp_path):
    """Three settings, two kernels each; asked again, nothing is compiled."""
    requests = tmp_path / "requests.csv"
    requests.write_text(REQUESTS)
    server = Server(
        model="qwen3-0.6b", chip="v6e", tp=8, page_size=128, max_num_seqs=16,
        max_num_batched_tokens=256, max_model_len=2048,
    )  # fmt: skip

    def ask(compiles):
        said = []
        found = rpa_tune.advise(
            server, workload=str(requests), page_sizes=(128,), tps=(8,), compiles=compiles,
            cache=tmp_path / "cache", workers=1, said=said.append,
        )  # fmt: skip
        return found, said

    bounds, _ = ask(0)
    found, said = ask(6)
    assert len(said) == 8  # requests served, what is simulated, six kernels
    for row, bound in zip(found.rows, bounds.rows, strict=True):
        assert row.is_simulated
        for ours, least in ((row.decode, bound.decode), (row.prefill, bound.prefill)):
            low, high = ours.interval_us
            assert least.attention_us < low < high
            assert 0 < ours.attention_share < 1
    assert found.compile_is.startswith("measured here")
    assert any("no bytes are saved" in line for line in found.differences)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*") if p.is_file()}
    again, _ = ask(6)
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*") if p.is_file()}
    assert before == after
    assert [row.decode.attention_us for row in again.rows] == [
        row.decode.attention_us for row in found.rows
    ]
