"""What a setting of a server needs: kernels with their configs, bytes, and room for them."""

import itertools
from dataclasses import dataclass, replace

from rpa_kernels.infeasible import Infeasible
from rpa_kernels.slots import family_of
from rpa_tune.analysis.advise_record import Row, Setting
from rpa_tune.analysis.advise_steps import Steps
from rpa_tune.candidate import Candidate
from rpa_tune.dispatch.select import select
from rpa_tune.errors import UsageError
from rpa_tune.families.registry import load_family
from rpa_tune.models.catalog import Share
from rpa_tune.models.padding import token_bytes, useful_token_bytes
from rpa_tune.models.roofline import HBM_SHARE, Roofline, hbm_bytes
from rpa_tune.models.server import Server
from rpa_tune.models.weights import Weights
from rpa_tune.tables.reader import Tables
from rpa_tune.workload.workload import Workload

# Slots that a step has launches for: one for decodes, one for all else. The prefill family does
# what mixed does, with chunks of one length.
_SLOTS = ("decode", "mixed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One kernel of one kind of layers, before it has a time.

    Attributes:
      share: The layers.
      source: Where the config is from.
      candidate: Kernel, problem and config.
      launched: Indices of the workload's steps in which it is launched.
    """

    share: Share
    source: str
    candidate: Candidate
    launched: tuple[int, ...]

    @property
    def family(self) -> str:
        """Its kernel family."""
        return self.candidate.family.name


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A row without its times.

    Attributes:
      server: The server in this setting.
      row: Its bytes and counts, or why it cannot be had.
      workload: Its steps; None if it cannot be had.
      parts: Its kernels.
    """

    server: Server
    row: Row
    workload: Workload | None = None
    parts: tuple[Part, ...] = ()

    @property
    def can_be_had(self) -> bool:
        """Whether there are kernels, and room for the weights as far as it is known."""
        return self.workload is not None and self.row.kv_tokens != 0


def draft(
    server: Server, setting: Setting, steps: Steps, tables: Tables, weight_dtype: str
) -> Draft:
    """Everything about a setting that needs no time.

    Args:
      server: The server's own flags.
      setting: What is other.
      steps: The workload.
      tables: Where its dispatcher looks configs up.
      weight_dtype: How weights are kept.
    """
    try:
        own = replace(
            server, page_size=setting.page_size, kv_dtype=setting.kv_dtype, tp=setting.tp,
            kv_layout=setting.layout,
        )  # fmt: skip
        if own.max_num_seqs < server.max_num_seqs:
            raise UsageError(
                f"{own.engine} runs at most {own.max_num_seqs:,} sequences in pages of "
                f"{own.page_size} tokens, and this server {server.max_num_seqs:,}"
            )
        layers = own.layers()
        workload = steps.at(setting.page_size)
        parts = tuple(
            _part(own, share, slot, workload, tables)
            for share in layers
            for slot in _SLOTS
            if any(_launches(workload, slot))
        )
    except UsageError as error:
        return Draft(server=server, row=Row(setting=setting, refusal=str(error.args[0])))
    stored, useful = cache_bytes(own)
    roofline = roofline_of(own, weight_dtype)
    tokens = None
    if roofline:
        room = HBM_SHARE * hbm_bytes(own.loaded_chip) - roofline.weight_bytes
        tokens = max(0, int(room // stored // setting.page_size) * setting.page_size)
    kinds = own.loaded.kinds
    row = Row(
        setting=setting,
        kv_token_bytes=stored,
        kv_useful_bytes=useful,
        kv_heads_repeated=max(max(1, own.head_devices(k) // k.num_kv_heads) for k in kinds),
        weight_bytes=roofline.weight_bytes if roofline else None,
        kv_tokens=tokens,
        num_kernels=_num_kernels(own, layers),
    )
    return Draft(server=own, row=row, workload=workload, parts=parts)


def roofline_of(server: Server, weight_dtype: str) -> Roofline | None:
    """A device's matrices; None where the model's weights are not known."""
    weights = server.loaded.weights
    if not isinstance(weights, Weights):
        return None
    return Roofline(
        weights=weights, chip=server.loaded_chip, tp=server.tp, weight_dtype=weight_dtype,
        ranks=server.attention_ranks,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cached:
    """What decides how many bytes a token takes in one layer."""

    num_kv_heads: int
    head_dim: int
    rope_dim: int | None
    kv_dtype: str
    kv_layout: str


def cache_bytes(server: Server) -> tuple[int, int]:
    """Bytes of a token in the KV cache of all layers of one device, and those of K and V."""
    stored = useful = 0
    for kind in server.loaded.at_tp(server.tp).kinds:
        if not kind.reads_other_cache:
            one = _Cached(
                num_kv_heads=kind.num_kv_heads, head_dim=kind.head_dim, rope_dim=kind.rope_dim,
                kv_dtype=server.kv_dtype, kv_layout=server.kv_layout,
            )  # fmt: skip
            stored += (kind.num_layers or 0) * token_bytes(one)
            useful += (kind.num_layers or 0) * useful_token_bytes(one)
    return stored, useful


def _num_kernels(server: Server, layers: list[Share]) -> int:
    """Distinct attention kernels: every shape with every family that a step there can launch."""
    mixes = [
        mix
        for num in range(1, len(server.families) + 1)
        for mix in itertools.combinations(server.families, num)
    ]
    return len(
        {
            (bucket.problem, family)
            for share in layers
            for bucket in server.buckets(share.problem)
            for mix in mixes
            if bucket.can_meet(mix)
            for family in mix
        }
    )


def _launches(workload: Workload, family: str) -> list[bool]:
    """Whether each step of the workload has sequences of a family."""
    return [bool(wb.batch.family_seqs(family)) for wb in workload.batches]


def _part(server: Server, share: Share, slot: str, workload: Workload, tables: Tables) -> Part:
    """A kernel with the config that the server's dispatcher has for its largest step.

    Raises:
      UsageError: No config can exist.
    """
    chip = server.loaded_chip
    family = family_of(slot, is_latent=share.problem.is_latent)
    choice = select(share.problem, chip.target, family, tables)
    if isinstance(choice, Infeasible):
        raise UsageError(f"no {family} kernel for {share.name} layers: {choice}")
    return Part(
        share=share,
        source=choice.source,
        candidate=Candidate(
            family=load_family(family),
            problem=share.problem,
            config=choice.configs[0],
            chip=chip,
            workload=workload.digest,
        ),
        launched=tuple(i for i, has in enumerate(_launches(workload, family)) if has),
    )
