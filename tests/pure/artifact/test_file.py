"""Artefacts of compiled kernels: what is written is read, and what was tampered with is refused."""

import hashlib
import json
import struct
import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rpa_tune import files
from rpa_tune.artifact import file as artifact
from rpa_tune.artifact.file import Artifact, Executable, Manifest, write_artifact
from rpa_tune.errors import ArtifactError

CONTENTS = {
    "executables/0000.bin": bytes(range(256)) * 64,
    "executables/0001.bin": b"second executable" * 100,
}


def make_executable(name, content):
    return Executable(
        name=name,
        num_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        problem={"num_q_heads": 8},
        launches=({"family": "decode", "config": {"bkv_sz": 256}},),
    )


def make_manifest(contents=CONTENTS, **fields):
    return replace(
        Manifest(
            chip="v6e",
            device_kind="TPU v6 lite",
            versions={"jax": "1", "libtpu": "2"},
            sources={"decode": "0" * 16},
            executables=tuple(make_executable(*item) for item in contents.items()),
        ),
        **fields,
    )


@pytest.fixture
def path(tmp_path):
    write_artifact(tmp_path / "kernels.zip", make_manifest(), CONTENTS)
    return tmp_path / "kernels.zip"


def rewrite(path, change):
    """The same zip with its members passed through `change(dict of name -> bytes)`."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members = change(members) or members
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def edit_manifest(path, change):
    def edit(members):
        data = json.loads(members["manifest.json"])
        change(data)
        members["manifest.json"] = json.dumps(data).encode()

    rewrite(path, edit)


def test_what_is_written_is_read(path):
    opened = Artifact(path)
    assert opened.manifest == make_manifest()
    assert [opened.read(e) for e in opened.manifest.executables] == list(CONTENTS.values())
    assert opened.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_same_content_gives_the_same_bytes(path, tmp_path):
    digest = write_artifact(tmp_path / "again.zip", make_manifest(), CONTENTS)
    assert (tmp_path / "again.zip").read_bytes() == path.read_bytes()
    assert digest == Artifact(path).sha256


def test_an_ordinary_zip_reader_can_look_inside(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["manifest.json", *CONTENTS]
        assert json.loads(archive.read("manifest.json"))["chip"] == "v6e"


def test_any_flipped_bit_is_refused(path):
    """Every 97th byte, one bit each: headers, content and directory alike."""
    whole, sha256 = path.read_bytes(), Artifact(path).sha256
    unnoticed = []
    for at in range(0, len(whole), 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(ArtifactError):
            Artifact(path, sha256=sha256)
        try:
            opened = Artifact(path)
        except ArtifactError:
            continue
        # Nothing but what no reader looks at may have changed: times, versions, attributes.
        assert opened.manifest == make_manifest()
        unnoticed.append(at)
    assert len(unnoticed) < len(range(0, len(whole), 97)) / 3


def test_any_truncation_and_any_bytes_around_are_refused(path):
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 41), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError):
            Artifact(path)
    for content in (whole + b"x", b"x" + whole, whole + whole, whole[1:]):
        path.write_bytes(content)
        with pytest.raises(ArtifactError):
            Artifact(path)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=40)), min_size=1,
        max_size=4,
    )
)  # fmt: skip
def test_a_file_edited_anyhow_is_refused_or_means_the_same(path, edits):
    """Cuts, insertions and overwrites at any place: an `ArtifactError`, or the very content."""
    whole = path.read_bytes()
    content = whole
    for place, num_cut, inserted in edits:
        at = int(place * len(content))
        content = content[:at] + inserted + content[at + num_cut :]
    path.write_bytes(content)
    try:
        opened = Artifact(path)
        found = [opened.read(e) for e in opened.manifest.executables]
    except ArtifactError:
        return
    finally:
        path.write_bytes(whole)
    assert opened.manifest == make_manifest()
    assert found == list(CONTENTS.values())


def test_a_flipped_bit_in_an_executable_is_refused(path):
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("executables/0000.bin")
    at = info.header_offset + 30 + len(info.filename) + info.compress_size // 2
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(ArtifactError, match=r"executables/0000.bin is damaged"):
        Artifact(path)


def test_a_swapped_executable_is_refused(path):
    names = list(CONTENTS)

    def swap(members):
        members[names[0]], members[names[1]] = members[names[1]], members[names[0]]

    rewrite(path, swap)
    with pytest.raises(ArtifactError, match=r"damaged: not the bytes|larger than"):
        Artifact(path)


def test_a_file_that_changes_after_it_was_checked_is_refused(path):
    opened = Artifact(path)
    rewrite(path, lambda members: members.update({"executables/0001.bin": b"x" * 1700}))
    with pytest.raises(ArtifactError, match="damaged"):
        opened.read(opened.manifest.executables[1])
    path.unlink()
    with pytest.raises(ArtifactError, match="cannot read"):
        opened.read(opened.manifest.executables[1])


NAMES = ["../../etc/passwd", "/etc/passwd", "executables/../x.bin", "executables\\0000.bin",
         "executables/0000.bin\n", "executables/evil.bin", ""]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_elsewhere_are_refused(path, name, tmp_path):
    """Listed in the manifest or not; and nothing is ever unpacked to disk."""
    before = sorted(tmp_path.rglob("*"))
    whole = path.read_bytes()
    edit_manifest(path, lambda data: data["executables"][0].update(name=name))
    with pytest.raises(ArtifactError, match="name="):
        Artifact(path)
    path.write_bytes(whole)
    rewrite(path, lambda members: members.update({name or "x": b"evil"}))
    with pytest.raises(ArtifactError, match=r"members are not those|not an artefact"):
        Artifact(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_members_missing_double_or_first(path, tmp_path):
    rewrite(path, lambda members: members.pop("executables/0001.bin") and None)
    with pytest.raises(ArtifactError, match="members are not those"):
        Artifact(path)
    double = tmp_path / "double.zip"
    write_artifact(double, make_manifest(), CONTENTS)
    with zipfile.ZipFile(double, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("executables/0000.bin", b"second of the name")
    with pytest.raises(ArtifactError, match="order or number"):
        Artifact(double)
    rewrite(double, lambda members: dict(reversed(members.items())))
    with pytest.raises(ArtifactError, match="first member"):
        Artifact(double)


MANIFESTS = {
    "schema 'rpa-artifact/9'": lambda d: d.update(schema="rpa-artifact/9"),
    "manifest: fields": lambda d: d.pop("chip"),
    "chip=3": lambda d: d.update(chip=3),
    "versions=": lambda d: d.update(versions={"jax": 1}),
    "executables=": lambda d: d.update(executables={}),
    "executables[1]: fields": lambda d: d["executables"][1].update(pickle="x"),
    "executables[0].num_bytes=-1": lambda d: d["executables"][0].update(num_bytes=-1),
    "executables[0].num_bytes=268435457": lambda d: d["executables"][0].update(
        num_bytes=(256 << 20) + 1
    ),
    "executables[0].sha256=": lambda d: d["executables"][0].update(sha256="0"),
    "executables[0].launches=": lambda d: d["executables"][0].update(launches=[]),
    "executables[0].launches[0]": lambda d: d["executables"][0]["launches"][0].pop("config"),
    "executables='a name twice'": lambda d: d["executables"][1].update(name="executables/0000.bin"),
    "larger than 10": lambda d: d["executables"][0].update(num_bytes=10),
    "left_out=": lambda d: d.update(left_out=["x"]),
}


@pytest.mark.parametrize("message", MANIFESTS)
def test_manifests_that_say_what_cannot_be(path, message):
    edit_manifest(path, MANIFESTS[message])
    with pytest.raises(ArtifactError) as caught:
        Artifact(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"null", b"[]"])
def test_manifests_that_are_no_json_object(path, text):
    rewrite(path, lambda members: members.update({"manifest.json": text}))
    with pytest.raises(ArtifactError, match=r"bad manifest\.json"):
        Artifact(path)


def test_a_member_that_unpacks_to_more_than_it_says_is_not_unpacked(path, monkeypatch):
    """A zip bomb: 200 MB of zeros behind a manifest that admits to 16 kB."""
    bomb = b"\0" * (200 << 20)
    rewrite(path, lambda members: members.update({"executables/0000.bin": bomb}))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ArtifactError, match="larger than 16,384 bytes"):
        Artifact(path)
    monkeypatch.setattr(artifact, "MAX_MANIFEST_BYTES", 100)
    with pytest.raises(ArtifactError, match="larger than 100 bytes"):
        Artifact(path)


def test_files_too_large_or_no_zips(path, tmp_path, monkeypatch):
    for name, content in [("short", b"PK"), ("text", b"hello " * 100), ("empty", b"")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArtifactError, match="not an artefact"):
            Artifact(tmp_path / name)
    with pytest.raises(ArtifactError, match="cannot read"):
        Artifact(tmp_path / "none")
    with pytest.raises(ArtifactError, match="cannot read"):
        Artifact(tmp_path)
    monkeypatch.setattr(artifact, "MAX_FILE_BYTES", path.stat().st_size - 1)
    with pytest.raises(ArtifactError, match="larger than"):
        Artifact(path)


def test_a_directory_of_too_many_members_is_not_even_read(path, monkeypatch):
    whole = bytearray(path.read_bytes())
    struct.pack_into("<HH", whole, len(whole) - 14, 60_000, 60_000)
    path.write_bytes(whole)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(ArtifactError, match="a directory of 60,000 members"):
        Artifact(path)


def test_a_second_directory_behind_a_comment_is_refused(path):
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"x" * 30
    with pytest.raises(ArtifactError, match="no plain zip directory"):
        Artifact(path)


def test_an_encrypted_member_is_refused(path):
    whole = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = whole.index(signature)
        struct.pack_into("<H", whole, at + offset, 1)
    path.write_bytes(whole)
    with pytest.raises(ArtifactError, match="encrypted"):
        Artifact(path)


def test_a_failed_write_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(ArtifactError, match="No space left"):
        write_artifact(path, make_manifest(chip="v5e"), CONTENTS)
    assert [p.name for p in path.parent.iterdir()] == ["kernels.zip"]
    assert path.read_bytes() == before


def test_reading_needs_neither_jax_nor_pickle():
    code = "import rpa_tune.artifact.file, sys; print({'jax', 'pickle'} & {*sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_another_file_than_the_one_that_was_meant_is_refused(path):
    with pytest.raises(ArtifactError, match=r"sha256 is .*, not 00") as caught:
        Artifact(path, sha256="0" * 64)
    assert "do not load it" in caught.value.hint
    assert Artifact(path, sha256=Artifact(path).sha256.upper())
