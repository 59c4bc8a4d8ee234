"""The wheel holds what the clone holds."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import rpa_tune

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "rpa_kernels": "kernels", "rpa_sweeps": "sweeps", "rpa_tune": "rpa_tune",
    "rpa_tuned_tables": "tuned_tables",
}  # fmt: skip
WITHOUT_CLICK = (
    "import sys; sys.modules['click'] = None; from rpa_tune.__main__ import main; main()"
)


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def packages_on_disk() -> set[str]:
    found = set()
    for package, folder in FOLDERS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            rest = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join([package, *rest]))
    return found


def test_pyproject_lists_every_package():
    assert set(pyproject()["tool"]["setuptools"]["packages"]) == packages_on_disk()


def test_version_is_said_once():
    init = (ROOT / "rpa_tune" / "__init__.py").read_text()
    version = re.search(r'__version__ = "(.+)"', init)
    assert version
    assert version.group(1) == pyproject()["project"]["version"]


def test_the_serving_names_are_listed_and_there():
    assert set(rpa_tune.__all__) <= set(dir(rpa_tune))
    for name in rpa_tune.__all__:
        assert getattr(rpa_tune, name) is not None


def test_base_install_is_light():
    names = {re.split(r"[\[>=<]", d)[0] for d in pyproject()["project"]["dependencies"]}
    assert names == {"jax", "numpy", "pyyaml"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout."""
    tmp_path = tmp_path_factory.mktemp("wheel")
    source = tmp_path / "source"  # setuptools leaves build/ in the tree it builds from
    for folder in FOLDERS.values():
        shutil.copytree(ROOT / folder, source / folder)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", tmp_path, source],
        check=True, capture_output=True,
    )  # fmt: skip
    (built,) = tmp_path.glob("*.whl")
    return built


def test_wheel_holds_code_and_data(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*"):
            kinds = {".py", ".yaml", ".jsonl", ".gz", ".html", ".css", ".js", ".txt"}
            wanted = path.suffix in kinds or path.name == "py.typed"
            if wanted and "__pycache__" not in path.parts:
                inside = f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
                assert inside in names, f"{inside} is not in the wheel"


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    """Where the wheel is unpacked; runs Python there, in an empty folder, on what it holds."""
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)

    def run(*arguments):
        # What is installed in the checkout's environment comes after PYTHONPATH.
        return subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, check=False,
            cwd=tmp_path_factory.mktemp("empty"), env={**os.environ, "PYTHONPATH": str(folder)},
        )  # fmt: skip

    found = run("-c", "import rpa_tune, rpa_sweeps; print(rpa_tune.__file__, rpa_sweeps.__file__)")
    assert found.stdout.count(str(folder)) == 2, found.stdout + found.stderr
    return run


def test_a_wheel_has_the_plans_that_help_names(unpacked):
    run = unpacked("-m", "rpa_tune", "sweep", "quickstart", "--dry-run", "--json")
    assert run.returncode == 0, run.stderr
    assert "v6e/llama3-8b/decode" in run.stdout
    text = unpacked("-m", "rpa_tune", "sweep", "--help").stdout
    for plan in (ROOT / "sweeps").glob("*.yaml"):
        assert plan.stem in text


def test_a_wheel_says_how_to_install_what_it_lacks(unpacked):
    run = unpacked("-c", WITHOUT_CLICK)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == "hint: pip install 'rpa-tune[tune]'"
    assert "Traceback" not in run.stderr


def test_a_checkout_says_how_to_install_what_it_lacks():
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_CLICK], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == f"hint: pip install -e '{ROOT}[tune]'"


def test_every_extra_that_a_hint_names_exists():
    extras = pyproject()["project"]["optional-dependencies"]
    named = [
        found
        for path in (ROOT / "rpa_tune").rglob("*.py")
        for found in re.findall(r"install_command\(['\"]([^)]*)['\"]\)", path.read_text())
    ]
    assert len(named) >= 4
    assert set(named) <= set(extras)


def test_every_dependency_is_imported_somewhere():
    """What is asked for and never imported is a burden; plugins and type stubs are not imported."""
    extras = pyproject()["project"]["optional-dependencies"]
    wanted = [*pyproject()["project"]["dependencies"], *extras["tune"], *extras["ray"]]
    modules = {"pyyaml": "yaml", "rpa-tune": "rpa_tune"}
    text = "\n".join(path.read_text() for path in (ROOT / "rpa_tune").rglob("*.py"))
    for requirement in wanted:
        name = re.split(r"[\[>=<]", requirement)[0]
        pattern = rf"^\s*(import|from) {modules.get(name, name)}\b"
        assert re.search(pattern, text, re.MULTILINE), f"no module imports {name}"


@pytest.mark.parametrize("name", ["capture.record", "capture.Capture", "load_dispatcher", "Step"])
def test_names_that_documents_use_are_there_after_importing_the_package(name):
    code = f"import rpa_tune; rpa_tune.{name}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_that_are_not_there_are_attribute_errors():
    with pytest.raises(AttributeError, match="captures"):
        _ = rpa_tune.captures
