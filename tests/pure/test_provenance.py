"""Digests follow the sources they are about, and nothing here loads jax."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rpa_kernels import FAMILIES
from rpa_tune import provenance as module
from rpa_tune.provenance import (
    kernel_digest,
    provenance,
    simulator_digest,
    verifier_digest,
    versions,
)

KERNELS = Path(module.__file__).resolve().parent.parent / "kernels"

# Traces a launch as `compile/lower.py` does, and says which modules of the kernels that loaded. The
# modules that say which configs are tried are stand-ins, which refuse to be called.
TRACE = """
import sys, types, jax, jax.numpy as jnp
from dataclasses import replace
from rpa_kernels import inputs, load_family
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target

def refuse(*args, **kwargs):
    raise AssertionError("a launch asked which configs are tried")

for kernel in ("decode", "blockwise"):
    space = types.ModuleType(f"rpa_kernels.{kernel}.space")
    space.__getattr__ = lambda name: refuse
    sys.modules[space.__name__] = space
target = Target(chip="v6e", vmem_bytes=128 << 20, smem_bytes=1 << 20, mxu_size=256, num_cores=2,
                has_bf16_vector_units=True, has_fp8_mxu=True, has_fast_fp8_mxu=False,
                has_result_buffers=False)
problem = Problem(num_q_heads=8, num_kv_heads=2, head_dim=128, page_size=128, max_num_tokens=64,
                  max_num_seqs=8, pages_per_seq=8, num_pages=64, sliding_window=100, soft_cap=30.0)
shapes = [(64, 8, 128), (64, 2, 128), (64, 2, 128)]
if {family!r}.startswith("mla-"):
    problem = replace(problem, num_kv_heads=1, head_dim=256, rope_dim=64)
    shapes = [(64, 8, 320), (64, 256), (64, 64)]
family = load_family({family!r})
config = family.config_from_dict({config!r})
def attend(q, k, v, cache, *scalars):
    q, kv_new = inputs.prepare(q, k, v, problem)
    out, cache = family.launch(q, kv_new, cache, *scalars, problem=problem, config=config,
                               target=target)
    return inputs.finish(out, problem), cache
lengths = [jax.ShapeDtypeStruct((n,), jnp.int32) for n in (8, 64, 9, 3)]
arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in (*shapes, problem.kv_cache_shape)]
jax.eval_shape(attend, *arrays, *lengths)
print(*sorted(name for name in sys.modules if name.startswith("rpa_kernels")))
"""


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """A copy of the real kernels, which the digests are taken of."""
    copy = tmp_path / "kernels"
    shutil.copytree(KERNELS, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(module.resources, "files", lambda name: copy)
    return copy


def digests():
    """Of each family's kernel, and of the verifier, read anew."""
    found = {family: kernel_digest.__wrapped__(family) for family in FAMILIES}
    return {**found, "verifier": verifier_digest.__wrapped__()}


def module_path(name):
    path = KERNELS.joinpath(*name.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_kernel_is_made_of_the_modules_that_its_launch_loads(family):
    """All but those that say which configs are tried, and of those it asks nothing."""
    config = {"bkv_sz": 256, "bkv_csz": 256, "num_buffers": 2, "bq_sz": 16}
    config |= {"seqs_per_step": 2} if "decode" in family else {"bq_csz": 16, "mxu_sums": 1}
    script = TRACE.replace("{family!r}", repr(family)).replace("{config!r}", repr(config))
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    loaded = {str(module_path(name).relative_to(KERNELS)) for name in run.stdout.split()}
    assert "calls.py" in loaded
    loaded -= {"decode/space.py", "blockwise/space.py"}
    roots = [f"rpa_kernels.{family.replace('-', '_')}", "rpa_kernels.inputs"]
    assert {path for path, _ in module._import_closure(roots)} == loaded


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("blockwise/mxu_sums.py", {"prefill", "mixed", "mla-mixed"}),
        ("blockwise/__init__.py", {"prefill", "mixed", "mla-mixed"}),
        ("mixed/__init__.py", {"mixed"}),
        (
            "decode/attend.py",
            {"decode", "mla-decode"},
        ),  # imported inside a function of the family's record
        ("stagger.py", set(FAMILIES)),
        ("mla_decode/kernel.py", {"mla-decode"}),
        ("decode/fits.py", {"decode", "mla-decode"}),
        ("blockwise/fits.py", {"prefill", "mixed", "mla-mixed"}),
        ("limits.py", set(FAMILIES)),
        ("decode/space.py", set()),
        ("blockwise/space.py", set()),
        ("kv_blocks.py", set()),
        ("online_softmax.py", set(FAMILIES)),
        ("reference.py", {"verifier"}),
        ("verify.py", {"verifier"}),
        ("inputs.py", {*FAMILIES, "verifier"}),
        ("README.md", set()),
    ],
)
def test_a_comment_changes_the_digests_of_those_who_import_the_file(kernels, file, changed):
    before = digests()
    with (kernels / file).open("a") as source:
        source.write("# A comment.\n")
    after = digests()
    assert {name for name in after if after[name] != before[name]} == changed


def test_a_module_counts_from_the_first_import_and_under_its_name(kernels):
    before = digests()
    (kernels / "extra.py").write_text("X = 1\n")
    assert digests() == before
    launch = kernels / "decode" / "launch.py"
    text = launch.read_text()
    launch.write_text(f"{text}\n\ndef later():\n    from rpa_kernels import extra\n")
    imported = digests()
    assert imported["decode"] != before["decode"]
    assert imported["mixed"] == before["mixed"]
    (kernels / "extra.py").write_text("X = 2\n")
    assert digests()["decode"] != imported["decode"]
    for_types = "if TYPE_CHECKING:\n    from rpa_kernels import extra\n"
    launch.write_text(f"{text}\nfrom typing import TYPE_CHECKING\n\n{for_types}")
    by_type_checkers = digests()
    (kernels / "extra.py").write_text("X = 3\n")
    assert digests() == by_type_checkers


def test_moving_text_between_files_changes_the_digest(kernels):
    before = digests()
    for path in kernels.rglob("*.py"):
        path.write_text(path.read_text().replace("rpa_kernels.stagger", "rpa_kernels.staggers"))
    moved = digests()
    (kernels / "stagger.py").rename(kernels / "staggers.py")
    assert len({d["decode"] for d in (before, moved, digests())}) == 3


def test_stamp_is_plain_and_complete():
    stamp = provenance(kernel_digest("decode"))
    assert json.loads(json.dumps(stamp)) == stamp
    assert stamp["kernel"] == kernel_digest("decode")
    assert stamp["simulator"] == simulator_digest()
    assert stamp["verifier"] == verifier_digest()
    assert stamp["jax"] == versions()["jax"]
    assert stamp["time"].endswith("+00:00")
    assert "kernel" not in provenance()


def test_versions_are_told_without_loading_jax_or_libtpu():
    script = (
        "import sys; from rpa_tune.provenance import provenance; s = provenance('mixed digest');"
        "print(s['libtpu'] is not None, [m for m in ('jax', 'libtpu') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True
    )
    assert out.stdout.strip() == "True []"
