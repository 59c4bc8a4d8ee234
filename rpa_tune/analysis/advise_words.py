"""What the rows of `advise` come to, in words with numbers.

Each row that differs from the server's own in one thing is compared with it, set by set of the
simulator's parameters: a scale that both share decides nothing. Times that some sets order one way
and some the other are no difference.
"""

from collections.abc import Iterator, Sequence

from rpa_tune.analysis.advise_record import Phase, Row
from rpa_tune.llo.ensemble import interval

# Less than this is no reason to change a server.
_MATTERS = 1.02


def differences(rows: Sequence[Row], own: Row) -> list[str]:
    """One line for each row that differs from the server's own in one thing, and can be had.

    Args:
      rows: All of them.
      own: The row of the server's own flags.
    """
    if own.refusal:
        return []
    lines = []
    for row in rows:
        change = _change(row, own)
        said = [] if row.refusal or not change else list(_compare(row, own))
        if said:
            lines.append(f"{change}: {'; '.join(said)}.")
    return lines


def _change(row: Row, own: Row) -> str:
    """What differs, in words; empty unless it is one thing."""
    ours, theirs = row.setting, own.setting
    said = [
        text
        for text, differs in (
            (f"pages of {ours.page_size} instead of {theirs.page_size}",
             ours.page_size != theirs.page_size),
            (f"{ours.kv_dtype} instead of {theirs.kv_dtype} in the KV cache",
             ours.kv_dtype != theirs.kv_dtype),
            (f"tp {ours.tp} instead of {theirs.tp}", ours.tp != theirs.tp),
            (f"layout {ours.layout} instead of {theirs.layout}", ours.layout != theirs.layout),
        )
        if differs
    ]  # fmt: skip
    return said[0] if len(said) == 1 else ""


def _compare(row: Row, own: Row) -> Iterator[str]:
    for name, ours, theirs in (
        ("decode", row.decode, own.decode), ("prefill", row.prefill, own.prefill),
    ):  # fmt: skip
        if ours and theirs and ours.set_us and theirs.set_us:
            yield _times(name, ours, theirs)
    yield from _bytes(row, own)


def _times(name: str, ours: Phase, theirs: Phase) -> str:
    """How much faster attention is, and the step."""
    ratios = [b / a for a, b in zip(ours.set_us, theirs.set_us, strict=True)]
    low, high = interval(ratios)
    factor = theirs.attention_us / ours.attention_us
    between = f"{low:.2f} to {high:.2f}x, simulated"
    if low < 1 < high or 1 / _MATTERS < factor < _MATTERS:
        return f"{name} attention alike ({between})"
    text = f"{name} attention {_faster(factor)} ({between})"
    if ours.step_us and theirs.step_us:
        text += f", the step {_faster(theirs.step_us / ours.step_us)} with the rest by roofline"
    return text


def _faster(factor: float) -> str:
    if 1 / _MATTERS < factor < _MATTERS:
        return f"as fast ({factor:.2f}x)"
    return f"{factor:.2f}x faster" if factor > 1 else f"{1 / factor:.2f}x slower"


def _bytes(row: Row, own: Row) -> Iterator[str]:
    """What it does to bytes and to what fits."""
    if row.setting.kv_dtype != own.setting.kv_dtype and row.kv_token_bytes == own.kv_token_bytes:
        yield (
            f"no bytes are saved: a token takes {row.kv_token_bytes:,} bytes in this layout either "
            f"way, {row.kv_useful_bytes:,} of them K and V"
        )
    elif row.kv_token_bytes != own.kv_token_bytes:
        ratio = own.kv_token_bytes / row.kv_token_bytes
        change = f"1/{ratio:.3g}" if ratio > 1 else f"{1 / ratio:.3g} times"
        yield f"{row.kv_token_bytes:,} bytes a token on each device, {change} as many"
    if row.kv_heads_repeated > own.kv_heads_repeated:
        yield f"every KV head is stored {row.kv_heads_repeated} times over the devices"
    if row.kv_tokens is not None and own.kv_tokens is not None:
        yield from _room(row.kv_tokens, own.kv_tokens)


def _room(ours: int, theirs: int) -> Iterator[str]:
    if not ours and theirs:
        yield "the weights do not fit"
    elif ours and not theirs:
        yield f"room for {ours:,} tokens, where the weights do not fit otherwise"
    elif ours and not 1 / _MATTERS < ours / theirs < _MATTERS:
        yield f"room for {ours:,} tokens instead of {theirs:,} ({ours / theirs:.2f}x)"
