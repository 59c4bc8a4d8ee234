"""What a workload looks like, as plain JSON values: for `rpa-tune workloads show|simulate`."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from rpa_kernels.slots import SLOTS
from rpa_tune.workload.batches import Workload
from rpa_tune.workload.build import Build, Served
from rpa_tune.workload.compress import Compression, relative_errors
from rpa_tune.workload.cost import HELD_OUT, Float64Array, ProxyCosts
from rpa_tune.workload.step import EngineStep

PERCENTILES = (5, 50, 95, 100)


def summarise_served(served: Served) -> dict[str, Any]:
    """Steps before compression: counts, shares of the kinds of step, and distributions.

    Attention times in it come from the analytical proxy: their proportions are meant.
    """
    spec, steps = served.spec, served.steps
    return {
        "name": spec.name,
        "source": spec.source,
        "seed": spec.seed,
        "page_size": spec.knobs.block_size,
        "requests": _requests(served),
        "trace": None if served.facts is None else served.facts.to_dict(),
        "dropped": dict(served.dropped),
        "engine": None if served.stats is None else asdict(served.stats),
        "num_steps": len(steps),
        "num_ramp_steps": served.num_all_steps - len(steps),
        "kinds": _kinds(steps, spec.knobs.block_size),
        "distributions": distributions(steps, np.ones(len(steps))),
    }


def summarise_build(build: Build) -> dict[str, Any]:
    """The same, with the batches kept and the error of keeping only them."""
    served, compression = build.served, build.compression
    return {
        **summarise_served(served),
        **summarise_workload(build.workload),
        "compression": {
            "num_batches": len(compression.indices),
            "num_steps": compression.num_steps,
            "time_error": {
                family: compression.errors[f"{family}.time_us"]
                for family in SLOTS
                if f"{family}.time_us" in compression.errors
            },
            "errors": dict(compression.errors),
            "worst_error": compression.worst_error,
            "held_out_time_error": _held_out(
                served.steps, compression, served.spec.knobs.block_size
            ),
        },
    }


def summarise_workload(workload: Workload) -> dict[str, Any]:
    """A workload's own batches."""
    return {
        "name": workload.name,
        "source": workload.source,
        "digest": workload.digest,
        "max_num_seqs": workload.max_num_seqs,
        "max_num_tokens": workload.max_num_tokens,
        "max_context_tokens": workload.max_context_tokens,
        "batches": [
            {
                "weight": wb.weight,
                "num_decode": wb.batch.num_decode,
                "num_prefill": wb.batch.num_prefill,
                "num_mixed": wb.batch.num_mixed,
                "num_tokens": wb.batch.num_tokens,
                "context_tokens": sum(wb.batch.kv_lens),
                "longest_context_tokens": max(wb.batch.kv_lens),
            }
            for wb in workload.batches
        ],
    }


def steps_of(workload: Workload) -> list[EngineStep]:
    """A stored workload's batches as steps, for drawing."""
    return [
        EngineStep(
            start_us=0.0,
            q_lens=np.array(wb.batch.q_lens, np.int32),
            kv_lens=np.array(wb.batch.kv_lens, np.int32),
            num_decode=wb.batch.num_decode,
            num_prefill=wb.batch.num_prefill,
        )
        for wb in workload.batches
    ]


def weights_of(workload: Workload) -> Float64Array:
    """float64[num_batches], how often each is launched."""
    return np.array([wb.weight for wb in workload.batches])


def distributions(steps: Sequence[EngineStep], weights: Float64Array) -> dict[str, Any]:
    """Histograms: sequences and new tokens of a launch, context and new tokens per sequence.

    Args:
      steps: Launches.
      weights: float64[num_steps], how often each is launched.
    """
    num_seqs = np.array([step.num_seqs for step in steps])
    num_tokens = np.array([int(step.q_lens.sum()) for step in steps])
    kv = np.concatenate([step.kv_lens for step in steps])
    q = np.concatenate([step.q_lens for step in steps])
    seq_weights = np.repeat(weights, num_seqs)
    return {
        "seqs_per_step": _histogram(num_seqs, weights),
        "tokens_per_step": _histogram(num_tokens, weights),
        "context_tokens_per_seq": _histogram(kv, seq_weights),
        "new_tokens_per_seq": _histogram(q, seq_weights),
    }


def _requests(served: Served) -> dict[str, Any] | None:
    if not served.requests:
        return None
    prompts = np.array([request.prompt_tokens for request in served.requests])
    outputs = np.array([request.output_tokens for request in served.requests])
    return {
        "count": len(prompts),
        "prompt_tokens": {f"p{p}": float(np.percentile(prompts, p)) for p in PERCENTILES},
        "output_tokens": {f"p{p}": float(np.percentile(outputs, p)) for p in PERCENTILES},
    }


def _kinds(steps: Sequence[EngineStep], block_size: int) -> dict[str, Any]:
    """Share of launches, and of each family's attention time, by the families launched."""
    costs = ProxyCosts(block_size=block_size)(steps)
    has_decode = np.array([step.num_decode > 0 for step in steps])
    has_mixed = np.array([step.num_decode < step.num_seqs for step in steps])
    times = sum(costs.column(f"{family}.time_us") for family in SLOTS)
    chosen = {
        "decode_only": has_decode & ~has_mixed,
        "prefill_only": ~has_decode & has_mixed,
        "mixed": has_decode & has_mixed,
    }
    return {
        kind: {
            "num_steps": int(mask.sum()),
            "launch_share": float(mask.mean()),
            "attention_time_share": float((times * mask).sum() / np.sum(times)),
        }
        for kind, mask in chosen.items()
    }


def _held_out(
    steps: Sequence[EngineStep], compression: Compression, block_size: int
) -> dict[str, dict[str, float]]:
    """Error in the times of kernels and chips that compression was not told of."""
    errors = {}
    for name, kernel in HELD_OUT.items():
        table = ProxyCosts(block_size=block_size, kernels={name: kernel})(steps)
        found = relative_errors(table, compression.indices, compression.weights)
        errors[name] = {
            family: found[f"{family}.time_us"] for family in SLOTS if f"{family}.time_us" in found
        }
    return errors


def _histogram(values: npt.NDArray[Any], weights: Float64Array) -> dict[str, Any]:
    """Shares of powers of two: bin i holds values above `upper[i - 1]` and up to `upper[i]`."""
    top = int(max(1, int(values.max()) - 1)).bit_length()
    upper = np.array([1 << i for i in range(top + 1)])
    shares = np.bincount(np.searchsorted(upper, values), weights, minlength=len(upper))
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order]) / weights.sum()
    at = np.minimum(np.searchsorted(cumulative, np.array(PERCENTILES) / 100), len(values) - 1)
    return {
        "upper": upper.tolist(),
        "share": (shares / weights.sum()).tolist(),
        "mean": float(np.average(values, weights=weights)),
        **{f"p{p}": int(v) for p, v in zip(PERCENTILES, values[order][at], strict=True)},
    }
