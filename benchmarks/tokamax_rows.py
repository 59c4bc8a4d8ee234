"""Writes `data/measured_tokamax.jsonl`: the attention times that tokamax's wheel carries.

    python benchmarks/tokamax_rows.py

One line a time, in the order of the wheel's tables. What the tables do not say is in
`not_recorded`. Rows that cannot be of use have the reason in `left_out`. Tables whose configs are
`{}` are runs of references, not of kernels, and are not read.
"""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measured

from rpa_tune.compile.paths import default_cache_dir
from rpa_tune.interop.public.tokamax.package import WHEEL

_TABLES = "tokamax/data/autotuning"
_CHIPS = {"tpu_v5": "v5p", "tpu_v6_lite": "v6e", "tpu7x": "v7x"}
_FILES = {
    "batched_rpa": "pallas_tpu_batched_rpa",
    "dense": "pallas_mosaic_tpu_flash_attention",
    "splash": "pallas_mosaic_tpu_splash_attention",
}
_DROPOUT = "draws random numbers: no attention kernel of a server does"
_RESIDUALS = "the call of the entry before it with two more outputs, in blocks of its own"
_NOT_YET = "not recorded yet: record_measured.py --source tokamax --row NAME does"
# Programs that `record_measured.py` refused, by their place.
_ON_SPARSE_CORE = "XLA runs a part of it on the SparseCore, which has no schedule here"
_REFUSED = {
    74: "a computation of XLA reads a scalar that nothing here gives it",
    285: "a copy of XLA has an instruction that is not understood, sshllo.u32",
    **dict.fromkeys((165, 193, 195, 197, 201), _ON_SPARSE_CORE),
}
_LONG_MS = 100.0
_LONG = "longer than 100 ms, all of them in the loop of shorter entries"


def lines(root: Path) -> Iterator[dict[str, Any]]:
    """The lines.

    Args:
      root: The unpacked wheel.
    """
    for folder, chip in _CHIPS.items():
        for kernel, file in _FILES.items():
            path = root / _TABLES / folder / f"{file}.json"
            if not path.exists():
                continue
            for place, (key, configs) in enumerate(json.loads(path.read_text()).items()):
                for config, answer in configs.items():
                    if config == "{}":
                        continue
                    measured_ms = statistics.median(answer["evaluation_times_ms"])
                    call = _call(kernel, json.loads(key))
                    if measured_ms > _LONG_MS:
                        call.setdefault("left_out", _LONG)
                    yield {
                        "kernel": kernel,
                        "chip": chip,
                        **call,
                        "blocks": json.loads(config),
                        "measured_us": measured_ms * 1000,
                        "source": f"tokamax {WHEEL.version}, {folder}/{file}.json",
                        "entry": place,
                    }


def _call(kernel: str, key: dict[str, Any]) -> dict[str, Any]:
    if kernel == "batched_rpa":
        _, num_kv_heads, _ = _shape(key["keys"])
        return {
            "queries": _shape(key["queries"]),
            "num_kv_heads": num_kv_heads,
            "kv_cache": _shape(key["kv_cache"]),
            "num_seqs": _shape(key["kv_lens"])[0],
            "num_page_indices": _shape(key["page_indices"])[0],
            "not_recorded": "contexts, assumed to fill their pages; distribution; versions",
        }
    mask = key["mask"]
    reason = _DROPOUT if key.get("dropout_rate") else ""
    reason = reason or (_RESIDUALS if key["return_residuals"] else "")
    return {
        "q": _shape(key["q"]),
        "k": _shape(key["k"]),
        "v": _shape(key["v"]),
        "is_causal": bool(mask.get("is_causal") or mask.get("causal_mask")),
        "has_residuals": key["return_residuals"],
        "logits_scale": key.get("logits_scale"),
        "mask_value": key.get("mask_value"),
        "not_recorded": "versions",
        **({"left_out": reason} if reason else {}),
    }


def _shape(text: str) -> list[int]:
    """`bf16[4,32,256]` or `i32[4]`.

    Raises:
      ValueError: Another element type: the calls are made for these.
    """
    kind, _, sizes = text.rstrip("]").partition("[")
    if kind not in ("bf16", "i32"):
        raise ValueError(f"{text} is not of bfloat16 or int32")
    return [int(size) for size in sizes.split(",")]


def main() -> None:
    """Writes the file."""
    found = list(lines(WHEEL.use(default_cache_dir())))
    recorded = measured.recorded_names()
    for place, line in enumerate(found):
        if place in _REFUSED:
            line["left_out"] = _REFUSED[place]
        if f"tokamax-{place}" not in recorded:
            line.setdefault("left_out", _NOT_YET)
    measured.TOKAMAX.write_text("".join(json.dumps(line) + "\n" for line in found))
    print(f"{len(found)} lines")


if __name__ == "__main__":
    main()
