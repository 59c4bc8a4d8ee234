"""Hints about a trace in the words of the command that gave it."""

import pytest

from rpa_tune.cli.workload_words import hints_name_import, hints_name_options, say_sources
from rpa_tune.errors import TraceError, UsageError
from rpa_tune.workload.workload import Workload

SETTINGS = {
    "requests: {drop_bad: true}": "--drop-bad",
    "requests: {time_unit: ms}": "--time-unit ms",
    "requests: {block_tokens: 16}": "--block-tokens 16",
    "arrivals: {process: at_once}": "--arrivals process=at_once",
    "engine: {max_num_seqs: 8, num_gpu_blocks: null}":
        "--knob max_num_seqs=8 --knob num_gpu_blocks=null",
}  # fmt: skip


@pytest.mark.parametrize(("setting", "option"), SETTINGS.items())
def test_a_setting_is_named_as_an_option_of_workloads(setting: str, option: str) -> None:
    with pytest.raises(TraceError) as caught, hints_name_options():
        raise TraceError("bad", hint="say so with {}", settings=(setting,))
    assert caught.value.hint == f"say so with `{option}`"


def test_other_commands_name_the_import_before_their_own_option() -> None:
    with pytest.raises(TraceError) as caught, hints_name_import("my trace.csv"):
        raise TraceError("bad", hint="{} or {}", settings=tuple(SETTINGS)[:2])
    command = "rpa-tune workloads import 'my trace.csv' -o stored.json"
    assert caught.value.hint == (
        f"`{command} --drop-bad` and `--workload stored.json` or "
        f"`{command} --time-unit ms` and `--workload stored.json`"
    )


@pytest.mark.parametrize("words", [hints_name_options(), hints_name_import("x")])
def test_other_errors_and_hints_without_settings_pass_as_they_are(words) -> None:
    with pytest.raises(UsageError) as caught, words:
        raise UsageError("bad", hint="a {} of its own")
    assert caught.value.hint == "a {} of its own"


def test_sources_are_said_once_and_those_of_presets_never(
    capsys: pytest.CaptureFixture[str],
) -> None:
    batch = {"q_lens": [1], "kv_lens": [9], "num_decode": 1, "weight": 1.0}
    own = Workload.from_dict(
        {"schema": "rpa-workload/1", "name": "mine", "source": "a file", "batches": [batch]}
    )
    preset = Workload.from_dict(
        {"schema": "rpa-workload/1", "name": "chat-low", "source": "x", "batches": [batch]}
    )
    say_sources([own, preset, own])
    assert capsys.readouterr() == ("", "workload mine: a file\n")
