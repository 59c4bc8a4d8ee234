"""What `advise` finds: one row for each setting of a server that was looked at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rpa_tune.llo.ensemble import interval
from rpa_tune.models.server import Server
from rpa_tune.workload.workload import Workload

SIMULATED, BOUND = "simulated", "bound"
# The layout of the KV cache that the kernels have: the public RPA v3 function's.
LAYOUT = "v3"


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What a row of the table is about.

    Attributes:
      page_size: Tokens in a page.
      kv_dtype: Dtype name of the KV cache.
      tp: Devices that share the heads.
      layout: Layout of the KV cache.
    """

    page_size: int
    kv_dtype: str
    tp: int
    layout: str = LAYOUT

    def __str__(self) -> str:
        """For people."""
        return f"page {self.page_size}, {self.kv_dtype}, tp {self.tp}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """One kernel family in one kind of layers: a launch, the mean over those of the workload.

    Attributes:
      layers: Name of the kind.
      num_layers: How many there are.
      family: Kernel family.
      source: Where its config is from: `exact`, `nearest` or `heuristic`.
      config: Fields of that config.
      fidelity: `simulated` or `bound`: no kernel with its account is faster.
      time_us: One launch in one layer.
      interval_us: What 90 % of the simulator's sets of parameters lie within; None of a bound.
      batch_us: Of each step of the workload in which it is launched.
      set_us: The same under each set of parameters; empty of a bound.
      detail: Why it was not simulated, if it should have been.
    """

    layers: str
    num_layers: int
    family: str
    source: str
    config: Mapping[str, Any]
    fidelity: str
    time_us: float
    interval_us: tuple[float, float] | None
    batch_us: tuple[float, ...]
    set_us: tuple[tuple[float, ...], ...] = ()
    detail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """Steps of one sort: the mean over those of the workload, all layers together.

    Attributes:
      attention_us: Attention of all layers.
      set_us: The same under each set of parameters; empty unless all of it is simulated.
      rest_us: Roofline of everything else; None where the weights are not known.
    """

    attention_us: float
    set_us: tuple[float, ...] = ()
    rest_us: float | None = None

    @property
    def fidelity(self) -> str:
        """Of `attention_us`: `simulated` or `bound`."""
        return SIMULATED if self.set_us else BOUND

    @property
    def interval_us(self) -> tuple[float, float] | None:
        """Of `attention_us`; None of a bound."""
        return interval(self.set_us) if self.set_us else None

    @property
    def step_us(self) -> float | None:
        """Attention and roofline, one after the other."""
        return None if self.rest_us is None else self.attention_us + self.rest_us

    @property
    def attention_share(self) -> float | None:
        """Attention's part of the step."""
        return self.attention_us / self.step_us if self.step_us else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One setting, on one device.

    Attributes:
      setting: Which.
      decode: Steps without prompts; None if the workload has none.
      prefill: Steps with prompts, decodes among them; None if the workload has none.
      attention: What both are made of.
      kv_token_bytes: Bytes of one token in the KV cache of all layers, padding included.
      kv_useful_bytes: Of those, bytes of K and V.
      kv_heads_repeated: How often each KV head is stored over all devices.
      weight_bytes: Bytes of weights; None where they are not known.
      kv_tokens: Tokens that the KV cache has room for; None where weights are not known.
      num_kernels: Distinct attention kernels that the server compiles at start-up.
      refusal: Why the server cannot have this; then all else is empty.
    """

    setting: Setting
    decode: Phase | None = None
    prefill: Phase | None = None
    attention: tuple[Attention, ...] = ()
    kv_token_bytes: int = 0
    kv_useful_bytes: int = 0
    kv_heads_repeated: int = 1
    weight_bytes: float | None = None
    kv_tokens: int | None = None
    num_kernels: int = 0
    refusal: str = ""

    @property
    def is_simulated(self) -> bool:
        """Whether all its times are."""
        phases = [phase for phase in (self.decode, self.prefill) if phase]
        return bool(phases) and all(phase.fidelity == SIMULATED for phase in phases)


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """The table and what follows from it.

    Attributes:
      server: Its own flags: the first row.
      workload: The steps, with the server's own pages.
      rows: The settings, nearest to the server's own first.
      differences: In words, with numbers.
      notes: What was taken for granted or left out.
      weight_dtype: How weights are kept.
      compile_s: Seconds to compile one kernel.
      compile_is: Where that is from: measured, on whatever else this machine did, or a guess.
    """

    server: Server
    workload: Workload
    rows: tuple[Row, ...]
    differences: tuple[str, ...]
    notes: tuple[str, ...]
    weight_dtype: str
    compile_s: float
    compile_is: str

    @property
    def own(self) -> Row:
        """The row of the server's own flags."""
        return self.rows[0]

    @property
    def most_context_tokens(self) -> int:
        """Tokens in the KV cache at the workload's fullest step."""
        return max(sum(wb.batch.kv_lens) for wb in self.workload.batches)

    @property
    def startup_s(self) -> float:
        """Seconds that the server's own attention kernels compile at start-up."""
        return self.own.num_kernels * self.compile_s


def mean_phase(
    workload: Workload,
    which: Sequence[int],
    parts: Sequence[tuple[Attention, Sequence[int]]],
    rest_us: Sequence[float] | None,
) -> Phase | None:
    """The mean over some steps of the workload.

    Args:
      workload: Its steps.
      which: Indices of the steps.
      parts: Kernels, each with the indices of the steps in which it is launched.
      rest_us: Roofline of each step of the workload; None where it is not known.

    Returns:
      None if there are no such steps.
    """
    total = sum(workload.batches[i].weight for i in which)
    if not total:
        return None
    share = {i: workload.batches[i].weight / total for i in which}
    time_us, sets, all_simulated = 0.0, list[float](), True
    for part, launched in parts:
        for place, i in enumerate(launched):
            if i not in share:
                continue
            factor = share[i] * part.num_layers
            time_us += factor * part.batch_us[place]
            if not part.set_us:
                all_simulated = False
                continue
            times = [factor * us for us in part.set_us[place]]
            sets = [a + b for a, b in zip(sets, times, strict=True)] if sets else times
    rest = None if rest_us is None else sum(share[i] * rest_us[i] for i in which)
    return Phase(attention_us=time_us, set_us=tuple(sets) if all_simulated else (), rest_us=rest)
