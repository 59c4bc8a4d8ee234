"""Hashes of a prompt's blocks (`hash_ids`): how long a block is, and what prompts share."""

from collections import Counter
from collections.abc import Sequence

from rpa_tune.errors import TraceError
from rpa_tune.workload.columns import TraceFormat
from rpa_tune.workload.draft import BadFieldError, Draft, Refusals
from rpa_tune.workload.text_tree import TextTree

# Sizes that are tried, to name in a hint.
BLOCK_TOKENS = tuple(1 << i for i in range(3, 13))


def settle_blocks(
    drafts: Sequence[Draft],
    tree: TextTree,
    known: TraceFormat,
    told: int | None,
    refusals: Refusals,
) -> tuple[list[Draft], int | None]:
    """Turns `hash_ids` into text, after a look at whether they fit the prompts.

    Args:
      drafts: Rows.
      tree: The texts of the file.
      known: Its format.
      told: Tokens of a block that a person gave, or None.
      refusals: What to do with rows whose hashes do not fit.

    Returns:
      (Rows that are left, tokens of a block; None without hashes.)

    Raises:
      TraceError: The size is not known, does not fit most rows, or a row is bad.
    """
    hashed = [draft for draft in drafts if draft.hashes is not None]
    if not hashed:
        if told:
            raise TraceError(f"no row has hash_ids: block_tokens={told} does not apply")
        return list(drafts), None
    size = told or known.block_tokens
    misfits = {id(d) for d in hashed if size is None or not _fits(d, size)}
    if size is None or 2 * len(misfits) > len(hashed):
        raise _unknown_size(hashed, size, misfits)
    kept = []
    for draft in drafts:
        if id(draft) in misfits:
            refusals.refuse(
                draft.place, BadFieldError("hash_ids", "misfit hashes", _misfit(draft, size))
            )
            continue
        if draft.hashes is not None:
            nodes = tree.walk(draft.hashes)
            ends = range(size, draft.prompt + 1, size)
            draft.text = tuple(zip(nodes, ends, strict=False))
        kept.append(draft)
    return kept, size


def _fits(draft: Draft, size: int) -> bool:
    """Whether there is a hash for every block of the prompt, or for every whole one."""
    return len(draft.hashes or ()) in (draft.prompt // size, -(-draft.prompt // size))


def _misfit(draft: Draft, size: int) -> str:
    return (
        f"{len(draft.hashes or ())} hashes for {draft.prompt} prompt tokens, "
        f"need {-(-draft.prompt // size)} of {size} tokens"
    )


def _unknown_size(hashed: Sequence[Draft], size: int | None, misfits: set[int]) -> TraceError:
    """What to say when the size of a block is not known or cannot be."""
    counts = Counter(s for draft in hashed for s in BLOCK_TOKENS if _fits(draft, s))
    fitting = [s for s, count in sorted(counts.items()) if count >= 0.99 * len(hashed)]
    hint = "give the tokens per hash_ids block with {}"
    if fitting:
        hint += f"; the numbers fit blocks of {' or '.join(map(str, fitting))} tokens"
    setting = f"requests: {{block_tokens: {fitting[0] if fitting else 'N'}}}"
    if size is None:
        return TraceError(
            "the number of tokens per hash_ids block is unknown",
            where=hashed[0].place,
            hint=hint,
            settings=(setting,),
        )
    first = next(draft for draft in hashed if id(draft) in misfits)
    return TraceError(
        f"hash_ids do not fit blocks of {size} tokens in {len(misfits):,} rows of {len(hashed):,}: "
        f"{_misfit(first, size)}",
        where=first.place,
        hint=hint,
        settings=(setting,),
    )
