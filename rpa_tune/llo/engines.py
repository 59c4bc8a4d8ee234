"""The hardware that runs beside the bundles: copy engines, sync flags, matrix units.

Readable and slow: the oracle's version. `fast.py` has the same arithmetic in arrays; the tests
hold both equal, cycle for cycle. Times are cycles; engines keep fractions of one.
"""

import functools
import math
from bisect import insort
from collections import deque
from enum import IntEnum
from typing import NamedTuple

from rpa_tune.llo.machine import Machine


class Owner(IntEnum):
    """Who a cycle belongs to. Every cycle has exactly one owner."""

    ISSUE = 0  # bundles with vector, matrix or load/store work
    SCALAR = 1  # bundles with scalar work or none, branch shadows
    MXU_WAIT = 2  # a matmul's result not ready, or its unit's queue full
    DMA_WAIT_READ = 3  # waits for copies from HBM
    DMA_WAIT_WRITE = 4  # waits for copies to HBM
    PROLOGUE = 5  # waits for scalar operands to reach SMEM, and other local copies
    SYNC = 6  # waits for flags that the kernel itself sets
    LAUNCH = 7  # before the first bundle


class Direction(IntEnum):
    """Which way a copy goes: the engine that serves it."""

    READ = 0
    WRITE = 1
    LOCAL = 2


OPERAND_MEMORIES = ("hbm", "cmem")
WAIT_OWNER = {
    Direction.READ: Owner.DMA_WAIT_READ,
    Direction.WRITE: Owner.DMA_WAIT_WRITE,
    Direction.LOCAL: Owner.PROLOGUE,
}


def direction_of(copy: str) -> Direction:
    """The engine that serves a `source_to_destination` copy.

    On v4 the compiler may place small operands in CMEM: their copies count, and are timed, as if
    they were in HBM; a timeline that has them says so among its guesses. So it does of copies
    within HBM, which count as writes.
    """
    source, destination = copy.split("_to_")
    if source in OPERAND_MEMORIES and destination == "vmem":
        return Direction.READ
    if source in ("vmem", *OPERAND_MEMORIES) and destination in OPERAND_MEMORIES:
        return Direction.WRITE
    return Direction.LOCAL


class CopyRates(NamedTuple):
    """How one kind of copy is served: one direction, linear or strided.

    Attributes:
      fixed_cycles: Engine time per copy, whatever its size.
      bytes_per_cycle: Bandwidth at which its queue serves it.
      copy_bytes_per_cycle: Bandwidth that one copy reaches at most; others go on beside it.
      latency_cycles: From the end of service until the flag counts.
    """

    fixed_cycles: float
    bytes_per_cycle: float
    copy_bytes_per_cycle: float
    latency_cycles: float


class Rates(NamedTuple):
    """A machine's parameters in the units that the simulation counts in.

    Attributes:
      branch_delay: Bundles between a branch and its effect.
      granule_bytes: Unit of copy sizes and flags.
      hbm_address_bytes: Unit of addresses in HBM, before a shift that makes them pointers.
      copies: Rates by `Direction`, of linear and of strided copies.
      queues: The queue of each `Direction`. Reads and writes may share one, served in order.
      slowdown: Extra time of a read or write, as a share, while the other queue is busy; 0 where
        they share one.
      cycles_per_row: MXU time of one row of a matmul.
      narrow_speed: How many times as fast it takes rows of 8-bit operands.
      latency_narrow: Matmul to first result, operands up to 16 bits.
      latency_wide: The same for 32-bit operands.
      queue_cycles: How far matmuls may be issued ahead of their unit.
      results_per_eight_rows: Registers popped per eight rows.
      barrier_cycles: From both cores' arrival at a barrier until they go on; 0 where devices have
        one core.
    """

    branch_delay: int
    granule_bytes: int
    hbm_address_bytes: int
    copies: tuple[tuple[CopyRates, CopyRates], ...]
    queues: tuple[int, int, int]
    slowdown: float
    cycles_per_row: float
    narrow_speed: int
    latency_narrow: int
    latency_wide: int
    queue_cycles: int
    results_per_eight_rows: int
    barrier_cycles: int


@functools.lru_cache(maxsize=256)  # sets of parameters are asked for again with every launch
def rates_of(machine: Machine, num_cores: int = 1) -> Rates:
    """Converts a machine's parameters to cycles.

    Args:
      machine: Its bandwidths are what one core has while the other of its device idles.
      num_cores: Cores that run side by side and share them evenly.
    """
    clock = machine.value("clock_hz")

    def copies(name: str, kind: str) -> CopyRates:
        bandwidth = machine.value(f"{name}_{kind}bytes_per_s") / clock / num_cores
        limit = machine.numbers.get(f"{name}_copy_bytes_per_s")
        return CopyRates(
            fixed_cycles=machine.value(f"{name}_fixed_cycles"),
            bytes_per_cycle=bandwidth,
            copy_bytes_per_cycle=min(bandwidth, float(limit.value or 0) / clock)
            if limit
            else bandwidth,
            latency_cycles=machine.value(f"{name}_latency_cycles"),
        )

    together = sum(
        max(machine.value(f"{name}_{kind}_bytes_per_s") for kind in ("linear", "strided"))
        for name in ("read", "write")
    )
    shares_queue = machine.value("copy_queues") == 1
    return Rates(
        branch_delay=int(machine.value("branch_delay_cycles")),
        granule_bytes=int(machine.value("granule_bytes")),
        hbm_address_bytes=int(machine.value("hbm_address_bytes")),
        copies=(
            (copies("read", "linear_"), copies("read", "strided_")),
            (copies("write", "linear_"), copies("write", "strided_")),
            (copies("local", ""),) * 2,
        ),
        queues=(0, 0 if shares_queue else 1, 2),
        slowdown=0.0
        if shares_queue
        else max(0.0, together / machine.value("shared_bytes_per_s") - 1),
        cycles_per_row=1 / machine.value("mxu_rows_per_cycle"),
        narrow_speed=round(
            machine.value("mxu_fp8_rows_per_cycle") / machine.value("mxu_rows_per_cycle")
        ),
        latency_narrow=round(machine.value("matmul_latency_bf16_cycles")),
        latency_wide=round(machine.value("matmul_latency_f32_cycles")),
        queue_cycles=round(machine.value("matmul_queue_cycles")),
        results_per_eight_rows=int(machine.value("mxu_size")) // 128,
        barrier_cycles=round(machine.value("barrier_cycles"))
        if "barrier_cycles" in machine.numbers
        else 0,
    )


class CopyQueue:
    """Where copies wait for their turn."""

    def __init__(self) -> None:
        self.free_at = 0.0


class CopyEngine:
    """One direction of the DMA engine: starts copies one after the other.

    Reads and writes share one queue, or the memory behind two. Of two queues that are both busy
    each slows the other down so that together they reach `shared_bytes_per_s`; copies already
    queued keep their times, later ones see the delay.
    """

    def __init__(self, direction: Direction, rates: Rates, queue: CopyQueue) -> None:
        self.direction = direction
        self.rates = rates
        self.queue = queue
        self.opposite: CopyQueue | None = None
        self.busy_cycles = 0.0
        self.fixed_busy_cycles = 0.0
        self.num_copies = 0
        self.num_bytes = 0

    def start(self, now: int, num_bytes: int, *, is_strided: bool = False) -> int:
        """Queues a copy at `now`; returns when its flag counts. An empty copy is free."""
        if num_bytes == 0:
            return now
        rates = self.rates.copies[self.direction][is_strided]
        begin = max(self.queue.free_at, float(now))
        moving = num_bytes / rates.bytes_per_cycle
        lost = 0.0
        if self.opposite is not None:
            overlap = min(moving, max(0.0, self.opposite.free_at - begin))
            lost = overlap * self.rates.slowdown
            self.opposite.free_at += lost
        service = rates.fixed_cycles + moving + lost
        self.queue.free_at = begin + service
        self.busy_cycles += service
        self.fixed_busy_cycles += rates.fixed_cycles
        self.num_copies += 1
        self.num_bytes += num_bytes
        # The next copy may start while this one is still limited by its own rate.
        alone = begin + (rates.fixed_cycles + num_bytes / rates.copy_bytes_per_cycle)
        return math.ceil(max(self.queue.free_at, alone) + rates.latency_cycles)


def copy_engines(rates: Rates) -> list[CopyEngine]:
    """The engines by `Direction`, on the queues that they have."""
    queues = [CopyQueue() for _ in Direction]
    engines = [CopyEngine(d, rates, queues[rates.queues[d]]) for d in Direction]
    read, write = engines[Direction.READ], engines[Direction.WRITE]
    if read.queue is not write.queue:
        read.opposite, write.opposite = write.queue, read.queue
    return engines


class Arrival(NamedTuple):
    """Granules that a flag will count."""

    at: int
    order: int
    granules: int
    direction: Direction


class SyncFlag:
    """One flag: its count, and the copies that will add to it."""

    def __init__(self) -> None:
        self.count = 0
        self.arrivals: list[Arrival] = []

    def expect(self, arrival: Arrival) -> None:
        """Adds a copy in flight; equal times keep their order."""
        insort(self.arrivals, arrival)

    def absorb(self, now: int) -> None:
        """Counts what has arrived by `now`."""
        while self.arrivals and self.arrivals[0].at <= now:
            self.count += self.arrivals.pop(0).granules

    def wait(self, now: int, granules: int) -> tuple[int, Direction | None]:
        """When the flag has counted `granules`, and the copy that came last.

        Raises:
          ValueError: It never will.
        """
        last = None
        while self.count < granules:
            if not self.arrivals:
                raise ValueError(self.count)
            arrival = self.arrivals.pop(0)
            self.count += arrival.granules
            if arrival.at > now:
                now, last = arrival.at, arrival.direction
        return now, last


class MatrixUnit:
    """One MXU: its queue, and when each result can be popped.

    Results come in order (`mrf`) or, where the matmul names a buffer (`mrb[n]`), by address.
    """

    def __init__(self, rates: Rates) -> None:
        self.rates = rates
        self.free_at = 0.0
        self.busy_cycles = 0.0
        self.in_order: deque[int] = deque()
        self.by_address: dict[int, int] = {}

    def matmul(self, now: int, rows: int, buffer: int) -> int:
        """Issues a matmul; returns when the bundle can issue."""
        rates = self.rates
        issue = max(now, math.ceil(self.free_at) - rates.queue_cycles)
        start = max(self.free_at, float(issue))
        busy = self.busy(rows)
        self.free_at = start + busy
        self.busy_cycles += busy
        latency = rates.latency_wide if rows <= 8 else rates.latency_narrow
        ready = math.ceil(start) + latency
        for result in range(rows // 8 * rates.results_per_eight_rows):
            if buffer < 0:
                self.in_order.append(ready)
            else:
                self.by_address[buffer + result] = ready
        return issue

    def busy(self, rows: int) -> float:
        """Cycles that it takes the rows of one matmul: 8 of 32-bit operands, 16, or 32 of 8-bit."""
        speed = self.rates.narrow_speed if rows > 16 else 1
        return rows * self.rates.cycles_per_row / speed

    def pop(self, now: int, buffer: int) -> int | None:
        """When the next result can be popped, or None if no matmul made one."""
        if buffer < 0:
            ready = self.in_order.popleft() if self.in_order else None
        else:
            ready = self.by_address.pop(buffer, None)
        return None if ready is None else max(now, ready)
