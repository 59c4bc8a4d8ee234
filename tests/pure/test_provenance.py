"""Digests follow the sources they are about, and nothing here loads jax."""

import json
import subprocess
import sys

from rpa_tune import provenance as module
from rpa_tune.provenance import kernel_digest, provenance, simulator_digest, versions


def digest_of(monkeypatch, root, family):
    """`kernel_digest` as if `rpa_kernels` were the folder `root`."""
    monkeypatch.setattr(module.resources, "files", lambda name: root)
    return kernel_digest.__wrapped__(family)


def make_tree(root):
    for name in ("layout.py", "decode/kernel.py", "mixed/kernel.py", "shared/kernel.py"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}")
    return root


def test_a_family_follows_its_own_and_the_shared_sources_only(tmp_path, monkeypatch):
    root = make_tree(tmp_path)
    before = {f: digest_of(monkeypatch, root, f) for f in ("decode", "mixed")}
    assert before["decode"] != before["mixed"]
    (root / "mixed/kernel.py").write_text("changed")
    (root / "README.md").write_text("words")
    assert digest_of(monkeypatch, root, "decode") == before["decode"]
    assert digest_of(monkeypatch, root, "mixed") != before["mixed"]
    (root / "shared/kernel.py").write_text("changed")
    assert digest_of(monkeypatch, root, "decode") != before["decode"]


def test_moving_text_between_files_changes_the_digest(tmp_path, monkeypatch):
    root = make_tree(tmp_path)
    before = digest_of(monkeypatch, root, "decode")
    (root / "layout.py").rename(root / "layout2.py")
    assert digest_of(monkeypatch, root, "decode") != before


def test_stamp_is_plain_and_complete():
    stamp = provenance("decode")
    assert json.loads(json.dumps(stamp)) == stamp
    assert stamp["kernel"] == kernel_digest("decode")
    assert stamp["simulator"] == simulator_digest()
    assert stamp["jax"] == versions()["jax"]
    assert stamp["time"].endswith("+00:00")
    assert "kernel" not in provenance()


def test_versions_are_told_without_loading_jax_or_libtpu():
    script = (
        "import sys; from rpa_tune.provenance import provenance; s = provenance('mixed');"
        "print(s['libtpu'] is not None, [m for m in ('jax', 'libtpu') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True
    )
    assert out.stdout.strip() == "True []"
