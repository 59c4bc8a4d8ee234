"""What `mla.py` compares: the cells of latent attention, and the blocks of the public kernel.

Neighbour: `cells.py`, whose groups these are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from cells import Group
from entries import Entry

from kernels import Answer
from rpa_kernels.batch import Batch
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.ints import cdiv
from rpa_kernels.layout import next_power_of_2
from rpa_kernels.problem import Problem
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop import simulate as foreign
from rpa_tune.interop.public.tpu_inference.calls import idle_mla_blocks
from rpa_tune.interop.public.tpu_inference.package import WHEEL
from rpa_tune.models.buckets import TPU_INFERENCE, latent_fields

CHIPS = ("v6e", "v7x", "v5p")
KINDS = ("decode", "mixed")
FLOAT8 = "float8_e4m3fn"
# (heads of a device, dtype of the cache, tokens of a page), the most important first. In
# tpu-inference all 128, 64 or 32 heads are on a device, and a page has 1024 tokens; 16 and 8 are
# those of 128 at TP8 and TP16 where the heads are shared.
VARIANTS = (
    (128, FLOAT8, 1024), (128, "bfloat16", 1024), (16, "bfloat16", 256), (8, FLOAT8, 256),
    (64, FLOAT8, 1024), (32, "bfloat16", 1024),
)  # fmt: skip
HEADS = tuple(dict.fromkeys(heads for heads, _, _ in VARIANTS))
# (chips, heads), the most important first.
TIERS = (
    (("v6e", "v7x"), (128,)), (("v6e", "v7x"), (16, 8)), (("v5p",), (128, 16, 8)),
    (CHIPS, (64, 32)),
)  # fmt: skip
RANK, ROPE = 512, 64  # DeepSeek-V3, Kimi-K2
SCALE = 192**-0.5
# What the public table has most often, then smaller ones; of pages of 1024.
PUBLIC_SETS: dict[str, list[dict[str, int]]] = {
    "decode": [
        {"bkv_sz": 3072, "batch_size": 8}, {"bkv_sz": 3072, "batch_size": 4},
        {"bkv_sz": 2048, "batch_size": 4}, {"bkv_sz": 1024, "batch_size": 4},
    ],
    "mixed": [
        {"bq_sz": 64, "bkv_sz": 1024, "q_split": 16}, {"bq_sz": 32, "bkv_sz": 1024, "q_split": 8},
        {"bq_sz": 8, "bkv_sz": 1024, "q_split": 4},
    ],
}  # fmt: skip
ROOM = 0.7  # of VMEM for buffers, where nobody has compiled a set before
TURNING = "xpose"  # how the names of the kernels begin that turn arrays over


def batches_of(kind: str) -> dict[str, Batch]:
    """The cells of a kind by name."""
    if kind == "decode":
        return {
            f"{kv // 1024}kx{seqs}": Batch(
                q_lens=(1,) * seqs, kv_lens=(kv,) * seqs, num_decode=seqs
            )
            for kv, seqs in ((4096, 16), (4096, 128), (16384, 64), (65536, 16))
        }
    lengths = {
        "verify4x32": ((4,) * 32, (4096,) * 32),
        "chunk512+4k": ((512,), (4608,)),
        "2x1024+16k": ((1024, 1024), (16384, 16384)),
        "4096": ((4096,), (4096,)),
    }
    return {name: Batch(q_lens=q, kv_lens=kv, num_decode=0) for name, (q, kv) in lengths.items()}


class Case(NamedTuple):
    """What is compared on one problem.

    Attributes:
      tier: Which of all it is: a run does those of a tier whole before it begins the next.
      by_kind: The cells of each kind.
    """

    tier: int
    by_kind: dict[str, Group]

    @property
    def whole(self) -> Group:
        """The cells of all kinds: the public function is compiled for them at once."""
        first = next(iter(self.by_kind.values()))
        batches = {k: b for group in self.by_kind.values() for k, b in group.batches.items()}
        return replace(first, kind="+".join(self.by_kind), batches=batches)

    def part(self, answer: Answer, kind: str) -> Answer:
        """What an answer for the whole says of one kind."""
        names, wanted = list(self.whole.batches), self.by_kind[kind].batches
        places = [i for i, name in enumerate(names) if name in wanted]
        return answer._replace(
            times_us=[answer.times_us[i] for i in places if answer.times_us],
            sets_us=[answer.sets_us[i] for i in places if answer.sets_us],
        )


def cases(chips: Sequence[str], heads: Sequence[int], kinds: Sequence[str]) -> Iterator[Case]:
    """All cases of the named chips, heads and kinds, the most important first."""
    order = [
        (of_tier, variant)
        for of_tier, heads_of_tier in TIERS
        for variant in VARIANTS
        if variant[0] in heads_of_tier
    ]
    for tier, (of_tier, variant) in enumerate(order):
        for chip in of_tier:
            if chip in chips and variant[0] in heads:
                yield Case(tier, groups(chip, *variant, kinds))


def groups(
    chip: str, heads: int, kv_dtype: str, page_size: int, kinds: Sequence[str]
) -> dict[str, Group]:
    """The cells of a chip and variant by kind, all of one problem."""
    by_kind = {kind: batches_of(kind) for kind in kinds}
    batches = [batch for some in by_kind.values() for batch in some.values()]
    pages = max(sum(cdiv(kv, page_size) for kv in batch.kv_lens) for batch in batches)
    problem = Problem(
        num_q_heads=heads,
        num_kv_heads=1,
        head_dim=RANK,
        rope_dim=ROPE,
        page_size=page_size,
        max_num_tokens=max(batch.num_tokens for batch in batches),
        max_num_seqs=max(batch.num_seqs for batch in batches),
        pages_per_seq=cdiv(max(max(batch.kv_lens) for batch in batches), page_size),
        num_pages=next_power_of_2(pages),
        sm_scale=SCALE,
        kv_dtype=kv_dtype,
        **{"q_dtype": "bfloat16", **latent_fields(TPU_INFERENCE, kv_dtype)},
    )
    model = f"{heads} heads {kv_dtype} page {page_size}"
    return {
        kind: Group(chip=chip, model=model, kind=kind, problem=problem, batches=some)
        for kind, some in by_kind.items()
    }


def public_sets(group: Group, count: int) -> list[dict[str, int]]:
    """The blocks of the public kernel for a kind: what its engine looks up, then `likely_sets`."""
    family = load_family(f"public-mla-{group.kind}")
    own = family.default_config(group.problem, load_chip(group.chip).target)
    sets = [] if isinstance(own, Infeasible) else [own]
    return [asdict(config) for config in dict.fromkeys([*sets, *likely_sets(group)])][:count]


def likely_sets(group: Group) -> list[Any]:
    """Those of `PUBLIC_SETS` that fit."""
    family, target = load_family(f"public-mla-{group.kind}"), load_chip(group.chip).target
    configs = [family.config_from_dict(fields) for fields in PUBLIC_SETS[group.kind]]
    return [
        config
        for config in configs
        if family.check(group.problem, config, target) is None
        and family.scratch_bytes(group.problem, config, target) <= ROOM * target.vmem_bytes
    ]


def public_entries(case: Case, count: int, cache_dir: Path) -> list[Entry]:
    """The public function with each set of all kinds at once; no set of a kind is left out."""
    sets = {kind: public_sets(group, count) for kind, group in case.by_kind.items()}
    return [
        public_entry(
            case.whole, {kind: some[min(rank, len(some) - 1)] for kind, some in sets.items()}, rank,
            cache_dir,
        )
        for rank in range(max(map(len, sets.values())))
    ]  # fmt: skip


def public_entry(
    group: Group, blocks: dict[str, dict[str, int]], rank: int, cache_dir: Path
) -> Entry:
    """The public function with blocks by kind; small ones for a kind that has none."""
    return Entry(
        group=group,
        kernel="mla",
        blocks=blocks,
        rank=rank,
        source=WHEEL.version,
        task=foreign.TASK,
        argument=foreign.ForeignTask(
            kernel="mla",
            root=WHEEL.root,
            chip=load_chip(group.chip),
            problem=group.problem,
            blocks=idle_mla_blocks(group.problem) | blocks,
            batches=tuple(group.batches.values()),
            cache_dir=cache_dir,
            without=TURNING,
        ),
    )


def alone(case: Case, entry: Entry, cache_dir: Path) -> dict[str, Entry]:
    """By kind: the blocks of a public entry for the cells of that kind only.

    Where the function does not compile because of the blocks of another kind these may.
    """
    return {
        kind: public_entry(group, {kind: entry.blocks[kind]}, entry.rank, cache_dir)
        for kind, group in case.by_kind.items()
    }
