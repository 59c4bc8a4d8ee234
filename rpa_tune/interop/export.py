"""Table rows in the forms that serving engines read. No jax.

Only rows of public kernels can be exported: block sizes of our kernels mean something else to
theirs. What a form cannot say is never dropped in silence: `Export.left_out` names it, and why.

| form | what it is |
|---|---|
| `kwargs` | JSON: the keyword arguments of the public function, by problem |
| `env` | `RPA_V3_*_BLOCK_SIZES` of tpu-inference: one set for the whole process |
| `tpu-inference` | Python text for the tables of tpu-inference 0.32.0 |
| `sglang-jax` | Python text for `TUNED_BLOCK_SIZES_V3` of sglang-jax |
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rpa_tune.errors import UsageError
from rpa_tune.public_configs import VERSION
from rpa_tune.public_kernels import PUBLIC_FAMILIES
from rpa_tune.tables.key import differences
from rpa_tune.tables.row import TableRow

FORMS = ("kwargs", "env", "tpu-inference", "sglang-jax")
OURS = "rows of our own kernels are used through the dispatcher, not by the public kernels"


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """A row that a form cannot say.

    Attributes:
      row: Which.
      why: One line.
    """

    row: TableRow
    why: str


@dataclass(kw_only=True, slots=True)
class Export:
    """What came out of an export.

    Attributes:
      text: For stdout or a file.
      exported: Rows that the text says.
      left_out: Rows that it does not.
    """

    text: str = ""
    exported: list[TableRow] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def leave_out(self, row: TableRow, why: str) -> None:
        """Notes a row that the form cannot say."""
        self.left_out.append(LeftOut(row=row, why=why))


def sort_out(rows: Iterable[TableRow], kernels: Sequence[str], why_not: str) -> Export:
    """An export with the rows of some public kernels in `exported`; the others are left out.

    Args:
      rows: Any rows.
      kernels: `v3`, `hd64`, `batched`, `stacked`: those that the form has a place for.
      why_not: Said of the other public kernels.
    """
    export = Export()
    for row in rows:
        family = PUBLIC_FAMILIES.get(row.key.family)
        if family is None:
            export.leave_out(row, OURS)
        elif family.kernel not in kernels:
            export.leave_out(row, f"{family.kernel}: {why_not}")
        elif len(row.configs) > 1:
            why = f"a rule over {len(row.configs)} configs; the engine has one config a problem"
            export.leave_out(row, why)
        else:
            export.exported.append(row)
    return export


def case_of(row: TableRow) -> str:
    """`decode`, `mixed`, or empty for a kernel that serves all sequences in one call."""
    _, _, case = row.key.family.removeprefix("public-").partition("-")
    return case


def keywords(row: TableRow) -> dict[str, Any]:
    """The block-size keyword arguments of the public function that a row sets."""
    kernel, config = PUBLIC_FAMILIES[row.key.family].kernel, row.configs[0]
    if kernel == "v3":
        return {f"{case_of(row)[0]}_block_sizes": v3_tuple(config)}
    if kernel == "hd64":
        pages = config["bkv_sz"] // row.key.page_size
        return {"num_kv_pages_per_block": pages, "num_queries_per_block": config["bq_sz"]}
    fields = dict(config)
    if kernel == "stacked" and case_of(row) == "decode":
        del fields["bq_c_sz"]
    name = "decode_block_sizes" if case_of(row) == "decode" else "prefill_block_sizes"
    return {name: fields}


def v3_tuple(config: dict[str, int]) -> tuple[int, int, int, int]:
    """(bq_sz, bkv_sz, bq_csz, bkv_csz)."""
    return (config["bq_sz"], config["bkv_sz"], config["bq_csz"], config["bkv_csz"])


def export_kwargs(rows: Iterable[TableRow]) -> Export:
    """JSON: for each problem and kernel, the keyword arguments; both cases of a kernel together."""
    export = sort_out(rows, ("v3", "hd64", "batched", "stacked"), "no place")
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for row in export.exported:
        kernel = PUBLIC_FAMILIES[row.key.family].kernel
        problem = {"chip": row.key.chip, **row.key.to_dict()}
        group = groups.setdefault(
            (kernel, json.dumps(problem)), {"kernel": kernel, "problem": problem, "kwargs": {}}
        )
        group["kwargs"] |= keywords(row)
    document = {"tpu_inference": VERSION, "calls": list(groups.values())}
    export.text = json.dumps(document, indent=2) + "\n"
    return export


def export_env(rows: Iterable[TableRow]) -> Export:
    """Shell lines for the variables that tpu-inference reads; they hold for the whole process.

    Raises:
      UsageError: Two rows of one case differ: the variables can say one of them only.
    """
    export = sort_out(rows, ("v3",), "the variables are read for the v3 kernel only")
    lines: dict[str, tuple[str, TableRow]] = {}
    for row in export.exported:
        name = f"RPA_V3_{case_of(row).upper()}_BLOCK_SIZES"
        value = ",".join(str(size) for size in v3_tuple(row.configs[0]))
        known, other = lines.setdefault(name, (value, row))
        if known != value:
            changed = differences(other.key, row.key).items()
            raise UsageError(
                f"{name} is one value for the process, but the rows say {known} and {value}: they "
                f"differ in {', '.join(f'{part} ({a}, {b})' for part, (a, b) in changed)}",
                hint="choose one problem: --chip, or a folder with the rows of one engine",
            )
    export.text = "".join(f"export {name}={value}\n" for name, (value, _) in sorted(lines.items()))
    return export


def comment(row: TableRow) -> str:
    """Where an exported line comes from, as the comment above it."""
    evidence = row.evidence
    gain = "" if evidence.speedup is None else f", {evidence.speedup:.2f}x the function's own"
    return (
        f"# {evidence.verdict}, {evidence.fidelity} {evidence.time_us:,.1f} us{gain}; "
        f"{evidence.workload} {evidence.workload_digest}; libtpu {evidence.libtpu}, {evidence.date}"
    )


def exporters() -> dict[str, Callable[[Iterable[TableRow]], Export]]:
    """Every form by name."""
    from rpa_tune.interop import sglang_jax_tables, tpu_inference_tables

    return {
        "kwargs": export_kwargs,
        "env": export_env,
        "tpu-inference": tpu_inference_tables.export_tables,
        "sglang-jax": sglang_jax_tables.export_tables,
    }
