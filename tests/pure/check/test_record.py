"""The file of a check: what is written is read back, and nothing else is."""

import getpass
import json
import platform

import pytest
from pure.check.host_of_a_tpu import Host

from rpa_tune.check import run
from rpa_tune.check.privacy import public_settings, without_places
from rpa_tune.check.record import KERNELS, STEPS, is_report, read_report
from rpa_tune.errors import UsageError


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The JSON of a whole check."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        Host().install(monkeypatch)
        path = tmp_path_factory.mktemp("check") / "check.json"
        run.tpu_check(path, cache=path.parent)
        return path.read_text()


def kernel(data):
    return data["steps"][STEPS.index(KERNELS)]["parts"][0]["figures"]


def rehearsed(data):
    figures = kernel(data)
    figures["rehearsed_us"] = figures.pop("measured_us")


CHANGES = {
    "newer": (lambda d: d.update(schema="rpa-tpu-check/9"), "this version reads rpa-tpu-check/1"),
    "no chip": (lambda d: d.pop("chip"), "'chip' is missing"),
    "odd chip": (lambda d: d.update(chip="v9"), "chip='v9' is not one of v4"),
    "odd mark": (lambda d: d.update(is_rehearsal="no"), "is_rehearsal='no' must be true or false"),
    "turned": (lambda d: d.update(is_rehearsal=True), "is_rehearsal says otherwise"),
    "a rehearsed time": (rehearsed, "is_rehearsal says otherwise than its times"),
    "both times": (lambda d: kernel(d).update(rehearsed_us=1.0), "either measured_us or"),
    "odd step": (lambda d: d["steps"][0].update(name="x"), "step 'x' is not one of"),
    "odd outcome": (lambda d: d["steps"][0]["parts"][0].update(outcome="x"), "'x' is not a valid"),
    "no time": (lambda d: kernel(d).update(measured_us=0), "must be a number above zero"),
    "a time in words": (lambda d: kernel(d).update(measured_us="9"), "must be a number above zero"),
    "NaN": (lambda d: kernel(d).update(measured_us=float("nan")), "must be a number above zero"),
    "another chip's": (lambda d: kernel(d)["candidate"].update(chip="v5e"), "is for v5e, not v6e"),
    "another batch": (
        lambda d: kernel(d)["workload"]["batches"][0].update(page_seed=7), "not the candidate's",
    ),
    "odd config": (lambda d: kernel(d)["candidate"]["config"].pop("bq_sz"), "bq_sz"),
    "odd family": (lambda d: kernel(d)["candidate"].update(family="x"), "x"),
    "huge": (
        lambda d: kernel(d)["candidate"]["problem"].update(num_pages=2**31 - 1),
        "pages do not fit the HBM",
    ),
    "no figures of a step": (lambda d: d.update(steps=[1]), "not a file of"),
    "device": (lambda d: d.update(device=[]), "device must be an object, got []"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_contradicts_itself_is_refused(written, tmp_path, name):
    change, said = CHANGES[name]
    data = json.loads(written)
    change(data)
    path = tmp_path / "check.json"
    path.write_text(json.dumps(data))
    assert is_report(path)
    with pytest.raises(UsageError) as refused:
        read_report(path)
    assert said in refused.value.args[0]
    assert refused.value.where == str(path)


def test_files_that_cannot_be_read(written, tmp_path):
    path = tmp_path / "check.json"
    assert not is_report(path)
    with pytest.raises(UsageError, match="cannot read: No such file"):
        read_report(path)
    path.write_text(written[:-100])  # torn
    with pytest.raises(UsageError, match="not a file of"):
        read_report(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not a file of"):
        read_report(path)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("/usr/lib/python3/x.py:12: bad", "<path>:12: bad"),
        ("--dump_to=/data/alice/run --x=1", "--dump_to=<path> --x=1"),
        ("see ~/runs/one, please", "see <path>, please"),
        ("file:///data/alice/x", "file://<path>"),
        ("'/a/b'", "'<path>'"),
        ("ask alice@example.org", "ask <mail>"),
        ("at 10.0.0.12:8476", "at <address>"),
        ("libtpu 0.0.42.1, jax 0.10.2", "libtpu 0.0.42.1, jax 0.10.2"),
        ("tokens/s, 32/8 heads, v6e/decode", "tokens/s, 32/8 heads, v6e/decode"),
        ("host-9 of bob, not bobby", "<host> of <user>, not bobby"),
        ("1/2/3", "1/2/3"),
    ],
)
def test_places_are_taken_out_and_nothing_else(monkeypatch, text, clean):
    monkeypatch.setattr(platform, "node", lambda: "host-9")
    monkeypatch.setattr(getpass, "getuser", lambda: "bob")
    assert without_places(text) == clean


def test_settings_keep_flags_and_plain_words_only():
    settings = {
        "JAX_ENABLE_X64": "1",
        "JAX_COORDINATOR_ADDRESS": "tpu-7.internal:8476",
        "LIBTPU_INIT_ARGS": "--xla_a=true --xla_jf_dump_to=/home/bob/x",
    }
    assert public_settings(settings) == {
        "JAX_ENABLE_X64": "1",
        "JAX_COORDINATOR_ADDRESS": "<left out>",
        "LIBTPU_INIT_ARGS": "--xla_a=true --xla_jf_dump_to=<path>",
    }
