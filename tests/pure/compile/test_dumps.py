"""Finding a kernel's schedule and its VMEM report among what the compiler wrote."""

import gzip
import json

import pytest

from rpa_tune.compile.dumps import (
    find_bundles,
    read_vmem_report,
    schedule_digest,
    unpack_bundles,
)
from rpa_tune.errors import DumpError


def write_bundles(folder, *names):
    for name in names:
        (folder / name).write_text(name)


def test_the_schedule_is_found_by_name_and_suffix(tmp_path):
    write_bundles(
        tmp_path,
        "17-decode-bkv_512.1-00-schedule-analysis_final_bundles.txt",
        "17-decode-bkv_512.1-01-final_bundles.txt",
        "17-decode-bkv_5120.1-01-final_bundles.txt",
        "17-TLP-01-final_bundles.txt",
    )
    found = find_bundles(tmp_path, "decode-bkv_512")
    assert found.name == "17-decode-bkv_512.1-01-final_bundles.txt"


def test_the_newest_of_several_counts(tmp_path):
    write_bundles(tmp_path, "17-k.1-01-final_bundles.txt", "18-k-02-final_bundles.txt")
    assert find_bundles(tmp_path, "k").name == "18-k-02-final_bundles.txt"


def test_names_are_no_regular_expressions(tmp_path):
    write_bundles(tmp_path, "17-axb.1-01-final_bundles.txt")
    with pytest.raises(DumpError, match=r"among the dumps of \['axb.1'\]"):
        find_bundles(tmp_path, "a.b")


def test_a_folder_without_dumps_is_an_error(tmp_path):
    with pytest.raises(DumpError, match="no schedule of kernel 'k'"):
        find_bundles(tmp_path, "k")


def report(folder, **data):
    text = f"<html><script>const DATA ={json.dumps(data)};\nconst heading = 1;</script></html>"
    (folder / "17-TLP-02-vmem_report.html").write_text(text)


def breakdown(total, *allocations):
    return {"blocks": [{"allocations": list(allocations)}], "total_size": total}


def test_vmem_and_its_spills(tmp_path):
    report(
        tmp_path,
        global_info={"vmem_capacity": 1000},
        hlo_breakdowns={
            "<top-inlining-caller>": breakdown(7),
            "k.1": breakdown(90, {"size": 60, "tag": "scratch"}, {"size": 30, "tag": "SPILL"}),
        },
    )  # fmt: skip
    found = read_vmem_report(tmp_path, "k")
    assert (found.total_bytes, found.spill_bytes, found.capacity_bytes) == (90, 30, 1000)


def test_no_report_is_none_and_so_is_one_about_others(tmp_path):
    assert read_vmem_report(tmp_path, "k") is None
    report(tmp_path, global_info={"vmem_capacity": 1}, hlo_breakdowns={"other.1": breakdown(7)})
    assert read_vmem_report(tmp_path, "k") is None


@pytest.mark.parametrize("text", ["", "const DATA ={", 'const DATA ={"global_info": {}}'])
def test_a_report_of_another_form_is_an_error_that_names_it(tmp_path, text):
    path = tmp_path / "17-TLP-02-vmem_report.html"
    path.write_text(text)
    with pytest.raises(DumpError) as caught:
        read_vmem_report(tmp_path, "k")
    assert caught.value.where == str(path)


def test_a_plain_schedule_is_itself_and_a_packed_one_is_unpacked(tmp_path):
    plain = tmp_path / "k-final_bundles.txt"
    plain.write_text("bundles")
    assert unpack_bundles(plain, tmp_path) == plain
    packed = tmp_path / "k2-final_bundles.txt.gz"
    packed.write_bytes(gzip.compress(b"more bundles"))
    assert unpack_bundles(packed, tmp_path).read_text() == "more bundles"


@pytest.mark.parametrize("content", [b"text", gzip.compress(b"x" * 100, mtime=0)[:-9]])
def test_a_damaged_packed_schedule_is_an_error_that_names_it(tmp_path, content):
    packed = tmp_path / "k-final_bundles.txt.gz"
    packed.write_bytes(content)
    with pytest.raises(DumpError, match="damaged") as caught:
        unpack_bundles(packed, tmp_path)
    assert caught.value.where == str(packed)


SCHEDULE = """\
   0x3   :  { %15 = dma.hbm_to_smem /*hbm=*/%s26632_s0, 16 } /* Start region 2 */
   0x4   :  { %p143_p2 = scmp.lt.s32.totalorder %s17459_s1, 1024 }
"""


@pytest.mark.parametrize(
    ("old", "new", "is_same"),
    [
        ("%s26632_s0", "%s7_s0", True),  # the compiler's name for a value
        ("%15", "%16", True),
        ("/*hbm=*/", "/*source=*/", True),
        (" /* Start region 2 */", "", True),
        ("%s26632_s0", "%s26632_s3", False),  # another register
        ("1024", "1025", False),
        ("scmp.lt", "scmp.le", False),
        ("0x4 ", "0x5 ", False),
    ],
)
def test_a_digest_covers_the_instructions_and_nothing_else(tmp_path, old, new, is_same):
    assert old in SCHEDULE
    digests = []
    for name, text in (("a", SCHEDULE), ("b", SCHEDULE.replace(old, new))):
        (tmp_path / name).write_text(text)
        digests.append(schedule_digest(tmp_path / name))
    assert len(digests[0]) == 16
    assert (digests[0] == digests[1]) == is_same


# Bounds checks as libtpu 0.0.42.1 writes them: comments in comments, over several lines, with the
# kernel's name and the numbers of values.
CHECKED = """\
   0x7   :  { %71 = shalt.err (!%p66_p4) /* BoundsCheck 0 [deref of %s12] for %26 = dma.hbm_to_vmem [thread:$0]  /*hbm=*/%s12, /*size_in_granules=*/128, /*vmem=*/%s24, /*dst_syncflagno=*/[#allocation3]
hlo: toy.1
 */ }
  0x15   :  { %99 = shalt.err (!%p94_p0) /* BoundsCheck 3 [deref of %s39] for %41 = dma.vmem_to_hbm [thread:$0]  /*vmem=*/%s39, /*hbm=*/%s2 /* 
base_bounds: (1, 1)
strides: (1, 1) */
hlo: toy.1
 */ }
  0x16   :  { %45 = vsyncpa [#allocation7], 1 } /* End region 1 */
"""  # noqa: E501


@pytest.mark.parametrize(
    ("old", "new", "is_same"),
    [
        ("toy.1", "attention_with_another_name.3", True),
        ("%s24", "%s77", True),
        ("strides: (1, 1)", "strides: (2,\n 1)", True),
        ("%p94_p0", "%p94_p1", False),
        ("vsyncpa", "vsyncadd", False),
        ("  0x16   :  { %45 = vsyncpa [#allocation7], 1 } /* End region 1 */\n", "", False),
    ],
)
def test_comments_that_span_lines_and_hold_comments_do_not_count(tmp_path, old, new, is_same):
    assert old in CHECKED
    digests = set()
    for name, text in (("a", CHECKED), ("b", CHECKED.replace(old, new))):
        (tmp_path / name).write_text(text)
        digests.add(schedule_digest(tmp_path / name))
    assert (len(digests) == 1) == is_same


def test_a_comment_without_an_end_is_an_error_with_its_line(tmp_path):
    path = tmp_path / "k-final_bundles.txt"
    path.write_text(SCHEDULE + "   0x5   :  { nop /* BoundsCheck /*hbm=*/ \nhlo: toy.1\n")
    with pytest.raises(DumpError, match="has no end") as caught:
        schedule_digest(path)
    assert caught.value.where == f"{path}:3"
