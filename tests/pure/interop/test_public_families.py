"""A public kernel is a family like any other; what it comes from is loaded when it is needed."""

import copy
import json
import pickle
import platform
import subprocess
import sys
from importlib import metadata

import pytest
from table_rows import PROBLEM, make_row

from rpa_kernels import FAMILIES
from rpa_tune.candidate import Candidate, Evaluation, Fidelity, Status
from rpa_tune.errors import UsageError
from rpa_tune.families.family import Family
from rpa_tune.families.registry import ALL_FAMILIES, known_family, load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop.public.family import PublicFamily
from rpa_tune.interop.public.package import PublicPackage, release
from rpa_tune.interop.public.tpu_inference.package import PACKAGE
from rpa_tune.interop.public.wheel import Wheel
from rpa_tune.store.journal import Journal
from rpa_tune.tables.writer import merge_into

OWN = set(FAMILIES)


@pytest.mark.parametrize("name", ALL_FAMILIES)
def test_there_is_one_object_of_each_name_in_this_process_and_in_a_worker(name):
    family = load_family(name)
    assert isinstance(family, Family)
    assert load_family(name) is family is known_family(name)
    assert pickle.loads(pickle.dumps(family)) is family
    assert copy.deepcopy(family) is family
    assert hash(family) == hash(load_family(name))
    assert repr(family) == f"<family {name}>"
    assert len(pickle.dumps(family)) < 200  # its name, not what it holds


def test_a_family_of_another_version_is_none():
    assert known_family("public-of-tomorrow") is None
    with pytest.raises(ValueError, match=r"unknown family 'decod'.*decode"):
        load_family("decod")


@pytest.mark.parametrize("name", ALL_FAMILIES)
def test_what_differs_is_said_by_the_family(name):
    family = load_family(name)
    is_own = name in OWN
    assert isinstance(family, PublicFamily) is not is_own
    assert family.is_launched is is_own
    assert (family.unverified == "") is is_own
    assert family.most_configs == (None if is_own else 1)
    packages = ("tpu-inference-0.32.0/3", "tokamax-0.0.17/1")
    assert (family.digest in packages) is not is_own
    assert set(family.slots) <= {"decode", "prefill", "mixed"}


@pytest.mark.parametrize(
    ("python", "jax", "says"),
    [((3, 12), (0, 11, 1), ""), ((3, 13), (), "need Python 3.13, this is 3.12.4"),
     ((), (0, 11, 2), "need jax 0.11.2, this is 0.11.1"), ((), (0, 11), ""),
     ((4,), (), "Python 4")],
)  # fmt: skip
def test_a_package_says_what_it_needs(monkeypatch, python, jax, says):
    monkeypatch.setattr(platform, "python_version", lambda: "3.12.4")
    monkeypatch.setattr(metadata, "version", lambda name: "0.11.1")
    wheel = Wheel(project="some-kernels", name="some_kernels", version="1.2", package="some")
    package = PublicPackage(
        name="some-kernels", wheel=wheel, revision=4, least_python=python, least_jax=jax
    )
    assert package.digest == "some-kernels-1.2/4"
    assert package.unavailable.startswith("the kernels of some-kernels 1.2") is bool(says)
    assert says in package.unavailable


def test_a_package_runs_on_what_its_kernels_run_on():
    assert PACKAGE.unavailable == ""
    assert release("0.11.1.dev3+x") == (0, 11, 1)


def test_a_wheel_that_was_not_fetched_is_asked_for_by_name():
    wheel = Wheel(project="some-kernels", name="some_kernels", version="1.2", package="some")
    with pytest.raises(UsageError, match="no some-kernels wheel in this process"):
        _ = wheel.root


def test_tables_and_stores_with_public_rows_are_read_without_jax_or_a_wheel(tmp_path):
    tables, store = tmp_path / "tables", tmp_path / "store.jsonl"
    name = "public-batched-decode"
    config = dict.fromkeys(load_family(name).config_type.__dataclass_fields__, 256)
    merge_into(tables, [make_row(name, configs=[config])])
    candidate = Candidate(
        family=load_family(name), problem=PROBLEM,
        config=load_family(name).config_from_dict(config), chip=load_chip("v6e"), workload="0" * 16,
    )  # fmt: skip
    answer = Evaluation(
        candidate=candidate, fidelity=Fidelity.SIMULATED, status=Status.OK, time_us=1.0
    )
    with Journal(store) as journal:
        journal.append(answer)
    script = (
        "import json, sys; from pathlib import Path\n"
        "from rpa_tune.tables.reader import load_tables\n"
        "from rpa_tune.tables.lint import lint_folder\n"
        "from rpa_tune.store.journal import read\n"
        f"rows = list(load_tables([Path({str(tables)!r})]))\n"
        f"lint_folder(Path({str(tables)!r}), {{}})\n"
        f"answers = read(Path({str(store)!r})).evaluations\n"
        "heavy = [m for m in ('jax', 'tpu_inference', 'optuna', 'click') if m in sys.modules]\n"
        "print(json.dumps([len(rows), len(answers), heavy]))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == [1, 1, []]
