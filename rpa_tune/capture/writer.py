"""Records what a live serving engine launches: lengths of every step, and nothing else.

One line where the engine has its batch arrays on the host:

    rpa_tune.capture.record("steps.jsonl", kv_lens=..., cu_q_lens=..., distribution=...)

or, with limits of one's own, `with Capture("steps.jsonl", max_bytes=...) as capture:` and
`capture.record(...)`. The engine's thread only copies three small arrays; a thread of its own
writes them. A server must never suffer from being watched: `record` does not block and does not
raise. What went wrong is in `Capture.problem`, what was lost is counted in the file.

The file is JSON Lines: a header, then one line a launch (`t` seconds, `q` and `kv` lengths, `nd`
decode sequences). It is bounded: full files become `steps.jsonl.1`, `.2`, ..., the oldest are
deleted. Lines are written whole and in order, so a crash loses at most the last one and what was
still queued. `rpa-tune workloads import` reads it. docs/workloads.md says where to put the line.

Standard library and numpy only: this module runs inside a server.
"""

import atexit
import contextlib
import json
import logging
import os
import queue
import threading
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

SCHEMA = "rpa-capture/1"
QUEUE_STEPS = 4096  # steps that wait for the writer before further ones are dropped and counted
CLOSE_S = 10.0  # longest wait for the writer at the end
FLUSH_S = 1.0  # a killed process loses at most the steps of this long, when the disk keeps up

_log = logging.getLogger(__name__)

Int32Array = npt.NDArray[np.int32]
_Item = tuple[float, Int32Array, Int32Array, Int32Array]


class Capture(contextlib.AbstractContextManager["Capture"]):
    """A bounded recording of one process's launches."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_bytes: int = 256 << 20,
        num_files: int = 4,
        every: int = 1,
        page_size: int | None = None,
    ) -> None:
        """Starts the writer; an earlier recording at `path` is kept as `path.1`.

        Args:
          path: File to write; `{pid}` stands for the process, for engines of several processes.
          max_bytes: All files together, at most.
          num_files: Files that share `max_bytes`; the oldest is deleted when all are full.
          every: Record every n-th call only.
          page_size: Noted in the header; tokens in a KV cache page.

        Raises:
          ValueError: A limit below 1, or files of less than 4096 bytes.
        """
        if num_files < 1 or every < 1 or max_bytes < 4096 * num_files:
            raise ValueError(
                f"num_files={num_files} and every={every} must be at least 1, "
                f"max_bytes={max_bytes} at least 4096 a file"
            )
        self.path = Path(str(path).replace("{pid}", str(os.getpid())))
        self.problem = ""
        self.num_dropped = 0
        self._file_bytes = max_bytes // num_files
        self._num_files = num_files
        self._every = every
        self._num_calls = 0
        self._header = {"schema": SCHEMA, "page_size": page_size, "every": every}
        self._start_s = time.monotonic()
        self._queue: queue.Queue[_Item | None] = queue.Queue(QUEUE_STEPS)
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._write_all, name="rpa-capture", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def record(
        self, *, kv_lens: npt.ArrayLike, cu_q_lens: npt.ArrayLike, distribution: npt.ArrayLike
    ) -> None:
        """Queues one launch; returns at once and never raises.

        With data parallelism, arrays that hold one section per rank are recorded as one launch
        per rank.

        Args:
          kv_lens: int[dp * max_num_seqs], context lengths; numpy, not arrays on a device.
          cu_q_lens: int[dp * (max_num_seqs + 1)], running sums of query lengths.
          distribution: int[dp * 3], as the attention kernel gets it.
        """
        try:
            self._num_calls += 1
            if self._num_calls % self._every or self.problem or os.getpid() != self._pid:
                return
            arrays = (_copy(kv_lens), _copy(cu_q_lens), _copy(distribution))
            self._queue.put_nowait((time.monotonic() - self._start_s, *arrays))
        except queue.Full:
            self.num_dropped += 1
        except Exception as error:  # a server must not die of its recorder
            self._give_up(error)

    def __exit__(self, *error: object) -> None:
        """Closes, whatever happened."""
        self.close()

    def close(self) -> None:
        """Writes what is queued and ends; safe to call twice."""
        atexit.unregister(self.close)
        if os.getpid() != self._pid or not self._thread.is_alive():
            return
        with contextlib.suppress(queue.Full):  # a disk that hangs must not hang the exit
            self._queue.put(None, timeout=CLOSE_S)
        self._thread.join(timeout=CLOSE_S)

    def _give_up(self, error: Exception) -> None:
        """Stops recording for good, and says so once."""
        self.problem = f"{type(error).__name__}: {error}"
        _log.warning("recording of %s has ended: %s", self.path, self.problem)

    def _write_all(self) -> None:
        """The writer thread: takes steps until it is told to stop."""
        try:
            item: _Item | None = None
            more = True
            while more:
                with self._next_file() as file:
                    if item is not None:
                        self._write(file, item)
                    more, item = self._fill(file)
        except Exception as error:
            self._give_up(error)
            while self._queue.get() is not None:  # so that `close` and `record` never wait
                pass

    def _fill(self, file: TextIO) -> tuple[bool, _Item | None]:
        """Writes steps to one file: (whether there is more to come, step for the next file)."""
        flushed_s = time.monotonic()
        while True:
            try:
                item = self._queue.get(timeout=FLUSH_S)
            except queue.Empty:
                file.flush()
                continue
            if item is None:
                return False, None
            if file.tell() >= self._file_bytes:
                return True, item
            self._write(file, item)
            if time.monotonic() - flushed_s > FLUSH_S:
                file.flush()
                flushed_s = time.monotonic()

    def _next_file(self) -> TextIO:
        """Shifts `path` to `path.1` and so on, and opens a new one with a header."""
        for number in range(self._num_files - 1, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{number}")
            newer = self.path.with_name(f"{self.path.name}.{number - 1}") if number > 1 else None
            source = newer or self.path
            if source.exists():
                source.replace(older)
        file = self.path.open("w", encoding="utf-8")
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        file.write(_line({**self._header, "started": started}))
        file.flush()
        return file

    def _write(self, file: TextIO, item: _Item) -> None:
        """Writes one line per data-parallel rank that has sequences."""
        seconds, kv_lens, cu_q_lens, distribution = item
        num_ranks = max(1, len(distribution) // 3)
        for rank in range(num_ranks):
            num_decode, _, num_seqs = np.split(distribution, num_ranks)[rank].tolist()
            if not num_seqs:
                continue
            cu = np.split(cu_q_lens, num_ranks)[rank][: num_seqs + 1]
            row: dict[str, Any] = {
                "t": round(seconds, 6),
                "q": np.diff(cu).tolist(),
                "kv": np.split(kv_lens, num_ranks)[rank][:num_seqs].tolist(),
                "nd": num_decode,
            }
            if self.num_dropped:
                row["dropped"], self.num_dropped = self.num_dropped, 0
            file.write(_line(row))


_captures: dict[str, Capture] = {}
_lock = threading.Lock()


def record(
    path: str,
    *,
    kv_lens: npt.ArrayLike,
    cu_q_lens: npt.ArrayLike,
    distribution: npt.ArrayLike,
) -> None:
    """Records one launch to `path`, starting the recording with the first call.

    The one line to put into an engine; arguments and behaviour of `Capture.record`, limits as
    `Capture` has them by default.
    """
    capture = _captures.get(path)
    if capture is None:
        try:
            with _lock:
                capture = _captures.get(path) or _captures.setdefault(path, Capture(path))
        except Exception as error:  # no thread to be had, say
            _log.warning("%s is not recorded: %s", path, error)
            return
    capture.record(kv_lens=kv_lens, cu_q_lens=cu_q_lens, distribution=distribution)


def _copy(values: npt.ArrayLike) -> Int32Array:
    """A copy, since engines reuse their buffers; refuses what would have to leave a device."""
    if type(values).__module__.partition(".")[0] in ("jax", "jaxlib"):
        raise TypeError("capture needs host arrays: a copy from a device would stall the engine")
    return np.array(values, np.int32)


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, separators=(",", ":")) + "\n"
