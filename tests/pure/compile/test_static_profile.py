"""The compiler's own estimates: read as libtpu 0.0.52 wrote them for the probe kernel on v6e."""

from pathlib import Path

import pytest

from rpa_tune.analysis.second_opinion import SecondOpinion
from rpa_tune.candidate import Status
from rpa_tune.cli.explain_text import print_second_opinion
from rpa_tune.compile import static_profile
from rpa_tune.compile.static_profile import (
    StaticProfile,
    has_paths,
    profile_environment,
    read_profile,
)
from rpa_tune.errors import DumpError

PROFILES = Path(__file__).parents[2] / "golden" / "static_profiles"
KERNEL = "rpa_decode-p64-bkv256_256-s4-n4-q16"


def test_the_kernel_is_told_from_what_surrounds_it():
    found = read_profile(PROFILES, KERNEL)
    assert found.status is Status.OK
    assert (found.kernel.name, found.kernel.cycles) == (f"{KERNEL}.1", 654)
    # It stops where the launch asks whether there are sequences: 14 instructions of thousands.
    assert found.kernel_instructions == 14
    assert [(one.name, one.cycles, one.count) for one in found.around] == [
        ("copy.16", 1112, 1), ("pad_maximum_fusion.refs_5_", 509, 1), ("copy.7", 11, 2),
    ]  # fmt: skip
    assert found.around_cycles == 1112 + 509 + 2 * 11


def test_times_are_at_the_chips_clock_and_both_kinds_are_said(capsys):
    opinion = SecondOpinion(profile=read_profile(PROFILES, KERNEL), clock_hz=1e9)
    assert opinion.around_us == pytest.approx(1.643)
    record = opinion.to_dict()
    assert record["around"][-1] == {"name": "copy.7", "count": 2, "us": pytest.approx(0.022)}
    assert record["kernel_us"] == pytest.approx(0.654)
    print_second_opinion(opinion)
    said = capsys.readouterr().out
    assert "around the kernel: 1.64 us of XLA's operations (4, " in said
    assert "0.02 us  copy.7  2 times" in said
    assert "0.65 us, along 14 of its instructions" in said


def test_a_program_that_did_not_compile_has_no_second_opinion(capsys):
    profile = StaticProfile(status=Status.OUT_OF_MEMORY, detail="vmem")
    opinion = SecondOpinion(profile=profile, clock_hz=1e9)
    assert opinion.around_us is None
    print_second_opinion(opinion)
    assert "second opinion: none: out_of_memory: vmem" in capsys.readouterr().out


def test_what_is_missing_or_odd_is_an_error(tmp_path):
    with pytest.raises(DumpError, match="no estimate of 'other'"):
        read_profile(PROFILES, "other")
    (tmp_path / "a_static_llo_profile.textproto").write_text('hlo_op_estimate { name: "a" }')
    with pytest.raises(DumpError, match="not understood"):
        read_profile(tmp_path, KERNEL)


@pytest.mark.parametrize(("libtpu", "there"), [("0.0.44", False), ("0.0.48", True)])
def test_only_versions_that_know_the_flag_are_asked_for_paths(tmp_path, monkeypatch, libtpu, there):
    monkeypatch.setattr(static_profile, "versions", lambda: {"libtpu": libtpu})
    assert has_paths(libtpu) is there
    flags = profile_environment(tmp_path)["LIBTPU_INIT_ARGS"]
    assert f"--xla_jf_dump_static_llo_profile_to={tmp_path}" in flags
    assert ("critical_path" in flags) is there
