"""How the query rows of a query compute block are split into chains; see `attend.py`. No jax."""

from dataclasses import dataclass, replace

from rpa_kernels import layout
from rpa_kernels.blockwise.config import BlockwiseConfig
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target

# Query rows of a chain, see `attend.py`. More rows reuse each weight load of the MXU more.
CHAIN_ROWS = 256
# Query rows of all chains in one pass of the pipeline, at most. More hide more of the first chain's
# and the last chain's latency; the code grows with them.
PASS_ROWS = 4096
# Tokens whose query rows lie together, where there are many.
GRANULE = 16
# Tokens of the splits for blocks of few queries.
SHORT_TOKENS = (16, 8, 4)
# Scores of such a chain at most, for one or two passes a KV block: each pass shows the latency of
# its first and its last product, which few rows do not fill.
SHORT_SCORES = 64 * layout.SUBLANES * layout.LANES
SHORT_LAG = 2
MAX_WIDTH = 16
# Chains of many queries whose scores are held at once: the others' slots are free again.
SLOTS = 4
# Heads, at least, that share a mask: to load one is as good as to compute half of one.
MASK_HEADS = 4
# Keys of a pass at an edge where a pass of all keys has twice as many: the columns of a large MXU.
EDGE_KEYS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Chains:
    """A split of the query rows of a query compute block.

    Attributes:
      tokens: Query tokens of the compute block.
      granule: Tokens whose query rows lie together.
      keys: Tokens of a KV compute block.
      edge_keys: Tokens of an *edge*: a part of one, or all, that has a pass of its own, with a
        mask, where some queries do not see some keys. Edges that no query sees have none.
      num_masks: Masks that a pass at an edge keeps, one for each part of a head; 0 where few heads
        would share one.
      rows: Query rows of a chain.
      parts: Chains of one KV head.
      width: Chains of one pass: several heads, or some of one head's parts.
      num_groups: Passes for all chains.
      lag: Chains from the one that is in qk back to the one that is in softmax; in pv is the one
        `lag - 1` before that.
    """

    tokens: int
    granule: int
    keys: int
    edge_keys: int
    num_masks: int
    rows: int
    parts: int
    width: int
    num_groups: int
    lag: int

    @property
    def is_short(self) -> bool:
        """Whether it is a split of few queries."""
        return self.tokens == self.granule

    @property
    def num_edges(self) -> int:
        """Edges of a KV compute block."""
        return self.keys // self.edge_keys

    @property
    def num_slots(self) -> int:
        """Chains that the buffers of scores and probabilities hold at a time."""
        return self.width if self.is_short else min(self.width, SLOTS)


def query_rows(problem: Problem, tokens: int) -> int:
    """Query rows of one KV head for some tokens, padding included."""
    return tokens * problem.q_words * layout.packing(problem.q_dtype)


def all_chains(
    family: str, problem: Problem, config: BlockwiseConfig, target: Target
) -> tuple[Chains, ...]:
    """The splits that a kernel has code for: of a compute block, then of fewer and fewer tokens.

    Blocks of few queries have their own in `mixed`: fewer rows, and more keys at a time. Chunks
    of prefill have one length, which their config fits.
    """
    whole = _chains_of(problem, tokens=config.bq_csz, granule=GRANULE, keys=config.bkv_csz)
    if family != "mixed":
        return (_with_edges(whole, target),)
    tile = layout.SUBLANES * layout.packing(problem.q_dtype)
    short = (
        _chains_of(problem, tokens=n, granule=n, keys=_short_keys(problem, config, n))
        for n in SHORT_TOKENS
        if n < config.bq_csz and query_rows(problem, n) % tile == 0
    )
    return tuple(_with_edges(chains, target) for chains in (whole, *short))


def _with_edges(chains: Chains, target: Target) -> Chains:
    """Keeps masks, and halves the keys of a pass at an edge, where that gains.

    A smaller MXU is busy for so long that a mask costs nothing, and has no slots to spare for one
    more rescaling of the accumulator. Half the keys need many query rows to hide their latencies.
    """
    if target.mxu_size < EDGE_KEYS or chains.width < MASK_HEADS * chains.parts:
        return chains
    is_long = chains.rows * chains.width >= PASS_ROWS and chains.keys == 2 * EDGE_KEYS
    edge_keys = EDGE_KEYS if is_long and not chains.is_short else chains.keys
    return replace(chains, num_masks=chains.parts, edge_keys=edge_keys)


def _chains_of(problem: Problem, *, tokens: int, granule: int, keys: int) -> Chains:
    """The split with the fewest parts of at most `CHAIN_ROWS` rows.

    Of many queries there are two chains at least, so that the products of one run beside the
    softmax of the other; of few, parts would only repeat the loads of weights.
    """
    rows, heads = query_rows(problem, tokens), problem.num_kv_heads
    least = 1 if tokens == granule else 2
    parts = next(
        parts
        for parts in range(1, rows + 1)
        if rows % parts == 0
        and heads * parts >= least
        and (rows // parts <= CHAIN_ROWS or rows // parts % (2 * layout.SUBLANES))
    )
    chain = rows // parts
    width = max(
        width
        for width in range(1, max(2, min(MAX_WIDTH, PASS_ROWS // chain)) + 1)
        if heads * parts % width == 0 and (width % parts == 0 or parts % width == 0)
    )
    return Chains(
        tokens=tokens,
        granule=granule,
        keys=keys,
        edge_keys=keys,
        num_masks=0,
        rows=chain,
        parts=parts,
        width=width,
        num_groups=heads * parts // width,
        # The softmax of few rows is shorter than a product's latency.
        lag=1 if tokens > granule or width < 2 * SHORT_LAG else SHORT_LAG,
    )


def _short_keys(problem: Problem, config: BlockwiseConfig, tokens: int) -> int:
    """Keys that few queries look at together: whole compute blocks that divide a KV block."""
    most = SHORT_SCORES // query_rows(problem, tokens)
    sizes = range(config.bkv_csz, config.bkv_sz + 1, config.bkv_csz)
    fitting = [size for size in sizes if config.bkv_sz % size == 0 and size <= most]
    return max(fitting, default=config.bkv_csz)
