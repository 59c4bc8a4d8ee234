"""Files that are whole or not there, even if the writer was killed."""

import signal
import socket
import subprocess
import sys

from rpa_tune.files import write_whole

KILLED_BEFORE_THE_RENAME = """
import os, pathlib, signal, sys
pathlib.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
from rpa_tune.files import write_whole
write_whole(pathlib.Path(sys.argv[1]), b"never seen")
"""


def test_what_a_killed_writer_left_is_cleared_away_by_the_next(tmp_path):
    path, other = tmp_path / "a.jsonl", tmp_path / "a.jsonl2"
    write_whole(path, b"old")
    for killed in (path, other):
        command = [sys.executable, "-c", KILLED_BEFORE_THE_RENAME, str(killed)]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 3
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    left = [file.name for file in tmp_path.iterdir() if file != path]
    assert len(left) == 1
    assert left[0].startswith(".a.jsonl2.")


def test_what_another_process_is_writing_stays(tmp_path):
    write_whole(tmp_path / "a", b"1")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        busy = tmp_path / f".a.{socket.gethostname()}.{process.pid}.1.tmp"
        busy.write_bytes(b"half")
        far = tmp_path / ".a.some-other-host.1234.1.tmp"
        far.write_bytes(b"half")
        write_whole(tmp_path / "a", b"2")
        assert busy.exists()
        assert far.exists()
        process.communicate(b"\n")
