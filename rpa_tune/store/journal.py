"""The store: an append-only file of evaluations, one JSON line each, schema in line 1.

Lines of another kind say what is planned for a study and what it came to (`notes.py`).

What it promises:
- A killed writer loses nothing that `append` returned from; a power cut loses at most the last
  `sync_interval_s` seconds.
- Any prefix of the file is a valid store. A torn last line is ignored by readers and cut off by
  the next writer.
- One writer at a time (a lock file beside the store, freed by the system when its owner dies);
  readers take no lock and are never blocked.
- Lines are never edited. The last answer of a candidate, fidelity and stamp counts.
"""

import contextlib
import errno
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from rpa_tune.candidate import Candidate, Evaluation, Method
from rpa_tune.errors import StoreError
from rpa_tune.store import codec, notes
from rpa_tune.store.doubt import fail_alike, is_settled
from rpa_tune.store.notes import StudyNote, StudyPlan

Key = tuple[str, Method, tuple[str, ...]]
_StudyKey = tuple[str, str]  # its name, and `Candidate.study`


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """What a reader finds in a store.

    Attributes:
      evaluations: All answers in the order they were written.
      end_bytes: Where the last whole line ends; a writer goes on from here.
      plans: The last plan of each study.
      notes: What studies came to since they were last planned.
      damaged_lines: Line numbers that do not decode, because they are damaged or name a config
        that the kernels no longer have; kept in the file, left out here.
    """

    evaluations: tuple[Evaluation, ...]
    end_bytes: int
    plans: tuple[StudyPlan, ...] = ()
    notes: tuple[StudyNote, ...] = ()
    damaged_lines: tuple[int, ...] = ()


def read(path: Path) -> Contents:
    """Reads a store without a lock; a running writer may be appending to it.

    A missing, empty or just begun file is an empty store.

    Raises:
      StoreError: Line 1 is not the header of a store we know, or the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Contents(evaluations=(), end_bytes=0)
    except OSError as error:
        raise StoreError(f"cannot read the store: {error.strerror}", where=str(path)) from error
    *lines, torn = data.split(b"\n")
    if not lines:
        if not _header().startswith(torn):
            raise StoreError("not a store: line 1 is no header", where=f"{path}:1")
        return Contents(evaluations=(), end_bytes=0)
    _check_header(lines[0], path)
    evaluations, damaged = [], []
    planned: dict[_StudyKey, StudyPlan] = {}
    ended: dict[_StudyKey, StudyNote] = {}
    for number, line in enumerate(lines[1:], start=2):
        try:
            if notes.is_note(line):
                _note(notes.decode(line), planned, ended)
            else:
                evaluations.append(codec.decode(line))
        except (ValueError, RecursionError):
            damaged.append(number)
    return Contents(
        evaluations=tuple(evaluations),
        end_bytes=len(data) - len(torn),
        plans=tuple(planned.values()),
        notes=tuple(ended.values()),
        damaged_lines=tuple(damaged),
    )


def _note(
    note: StudyPlan | StudyNote,
    planned: dict["_StudyKey", StudyPlan],
    ended: dict["_StudyKey", StudyNote],
) -> None:
    """A study that is planned anew has not ended yet."""
    key = (note.name, note.study)
    if isinstance(note, StudyPlan):
        planned[key] = note
        ended.pop(key, None)
    else:
        ended[key] = note


def is_store(path: Path) -> bool:
    """Whether a file begins as a store does, of whatever version."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MARK)) == _MARK
    except OSError:
        return False


def has_writer(path: Path) -> bool:
    """Whether a run holds the store's lock at this moment."""
    lock = FileLock(str(path) + ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # a folder that cannot be written to has no writer
        return False
    lock.release()
    return False


class Journal(contextlib.AbstractContextManager["Journal"]):
    """The one writer of a store, and an index of what it holds. Use as a context manager."""

    def __init__(
        self,
        path: Path,
        *,
        sync_interval_s: float = 1.0,
        ignore_known: bool = False,
        also_known: Iterable[Evaluation] = (),
    ) -> None:
        """Takes the lock, reads what is there and cuts off a torn last line.

        Args:
          path: The file; made with its folder when missing.
          sync_interval_s: At most this long between an append and its fsync; 0 syncs each one.
          ignore_known: Keep what is in the file, but answer nothing from it.
          also_known: Answers from elsewhere that count like those in the file.

        Raises:
          StoreError: Another writer holds the store, its schema is unknown, or it is not
            writable.
        """
        self.path = path
        self._sync_interval_s = sync_interval_s
        self._synced_at = time.monotonic()
        self._answers: dict[Key, Evaluation] = {}
        self._num_here: dict[Key, int] = {}  # answers that this run got
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(str(path) + ".lock")
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise StoreError(
                "another sweep is writing to this store",
                where=str(path),
                hint="wait for it to end, or give this one its own file with --store",
            ) from error
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            contents = read(path)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            self._lock.release()
            raise _unwritable(path, error) from error
        except StoreError:
            self._lock.release()
            raise
        self.damaged_lines = contents.damaged_lines
        self._end_bytes = contents.end_bytes
        os.ftruncate(self._file, self._end_bytes)
        if not self._end_bytes:
            self._write(_header() + b"\n")
            self.sync()
            _sync_folder(path.parent)
        for evaluation in () if ignore_known else (*also_known, *contents.evaluations):
            self._answers[_key_of(evaluation)] = evaluation
        self._planned = {(plan.name, plan.study): plan for plan in contents.plans}
        self._ended = {(note.name, note.study): note for note in contents.notes}
        self._before, self._doubtful = frozenset(self._answers), _doubtful(self._answers)

    def __len__(self) -> int:
        """Answers that count: one per candidate, fidelity and stamp."""
        return len(self._answers)

    def append(self, evaluation: Evaluation) -> None:
        """Writes one answer; when it returns, a kill can no longer lose it.

        Raises:
          StoreError: The disk is full or failing. What was written before stays whole.
        """
        self._write(codec.encode(evaluation))
        self._index(evaluation)
        if time.monotonic() - self._synced_at >= self._sync_interval_s:
            self.sync()

    def append_note(self, note: StudyPlan | StudyNote) -> None:
        """Writes what is planned for a study or what it came to, unless the store says the same.

        Raises:
          StoreError: The disk is full or failing. What was written before stays whole.
        """
        key = (note.name, note.study)
        if note not in (self._planned.get(key), self._ended.get(key)):
            self._write(notes.encode(note))
            _note(note, self._planned, self._ended)

    def find(
        self, candidate: Candidate, fidelity: Method, stamp: Sequence[str]
    ) -> Evaluation | None:
        """The answer that still holds for today's `stamp`, or None when it is to be asked.

        One that blames the machine or the moment is asked for again; `doubt.py` says when.
        """
        key = (candidate.digest, fidelity, tuple(stamp))
        answer = self._answers.get(key)
        if answer is None:
            return None
        num_here = self._num_here.get(key, 0)
        if not num_here and key in self._doubtful:
            return None
        was_before = key in self._before
        settled = is_settled(answer.status, num_here=num_here, was_before=was_before)
        return answer if settled else None

    def evaluations(self) -> Iterator[Evaluation]:
        """The answers that count, in the order of their first appearance."""
        return iter(self._answers.values())

    def sync(self) -> None:
        """Forces what was written onto the disk.

        Raises:
          StoreError: The disk is full or failing.
        """
        try:
            os.fsync(self._file)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self._synced_at = time.monotonic()

    def __exit__(self, *error: object) -> None:
        """Closes, whatever happened."""
        self.close()

    def close(self) -> None:
        """Syncs and gives the lock back. Closing twice is allowed."""
        if self._file < 0:
            return
        try:
            self.sync()
        finally:
            os.close(self._file)
            self._file = -1
            self._lock.release()

    def _index(self, evaluation: Evaluation) -> None:
        key = _key_of(evaluation)
        self._answers[key] = evaluation
        self._num_here[key] = self._num_here.get(key, 0) + 1

    def _write(self, line: bytes) -> None:
        """Appends whole lines only: a short write is taken back."""
        try:
            written = 0
            while written < len(line):
                written += os.pwrite(self._file, line[written:], self._end_bytes + written)
        except OSError as error:
            os.ftruncate(self._file, self._end_bytes)
            raise _unwritable(self.path, error) from error
        self._end_bytes += len(line)


def _key_of(evaluation: Evaluation) -> Key:
    stamp = codec.stamp_of(evaluation.provenance, evaluation.fidelity)
    return evaluation.candidate.digest, evaluation.fidelity, stamp


def _doubtful(answers: Mapping[Key, Evaluation]) -> frozenset[Key]:
    """Questions of studies in which everything failed for one reason."""
    studies: dict[tuple[str, Method, tuple[str, ...]], list[Key]] = {}
    for key, answer in answers.items():
        _, fidelity, stamp = key
        studies.setdefault((answer.candidate.study, fidelity, stamp), []).append(key)
    alike = (keys for keys in studies.values() if fail_alike(answers[key] for key in keys))
    return frozenset().union(*alike)


_MARK = b'{"schema":"rpa-store/'


def _header() -> bytes:
    return json.dumps({"schema": codec.SCHEMA}, separators=(",", ":")).encode()


def _check_header(line: bytes, path: Path) -> None:
    try:
        schema = json.loads(line)["schema"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise StoreError("not a store: line 1 is no header", where=f"{path}:1") from error
    if schema != codec.SCHEMA:
        raise StoreError(
            f"unknown store schema {schema!r}",
            where=f"{path}:1",
            hint=f"this version reads {codec.SCHEMA}; use another --store, or upgrade",
        )


def _sync_folder(folder: Path) -> None:
    """Makes a new file's name durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritable(path: Path, error: OSError) -> StoreError:
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = "make room" if is_full else "make it writable, or use another --store,"
    return StoreError(
        f"cannot write to the store: {error.strerror or error}",
        where=str(path),
        hint=f"earlier results are intact; {remedy} and run the same command to resume",
    )
