"""The wheel holds what the clone holds."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import rpa_tune

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"rpa_kernels": "kernels", "rpa_tune": "rpa_tune", "rpa_tuned_tables": "tuned_tables"}


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


def test_wheel_holds_code_and_data(tmp_path):
    source = tmp_path / "source"  # setuptools leaves build/ in the tree it builds from
    for folder in FOLDERS.values():
        shutil.copytree(ROOT / folder, source / folder)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", tmp_path, source],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*"):
            wanted = path.suffix in {".py", ".yaml", ".jsonl", ".gz"} or path.name == "py.typed"
            if wanted and "__pycache__" not in path.parts:
                inside = f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
                assert inside in names, f"{inside} is not in the wheel"


def test_the_base_install_says_what_the_command_line_needs():
    code = "import sys; sys.modules['click'] = None; from rpa_tune.__main__ import main; main()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "pip install '.[tune]'" in run.stderr
    assert "Traceback" not in run.stderr
