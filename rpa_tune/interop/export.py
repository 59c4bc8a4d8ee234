"""Table rows in the forms that serving engines read. No jax.

Only rows of public kernels can be exported: block sizes of our kernels mean something else to
theirs. What a form cannot say is never dropped in silence: `Export.left_out` names it, and why.

| form | what it is |
|---|---|
| `kwargs` | JSON: the keyword arguments of the public function, by problem |
| `env` | `RPA_V3_*_BLOCK_SIZES` of tpu-inference: one set for the whole process |
| `tpu-inference` | Python text for the tables of tpu-inference 0.32.0 |
| `sglang-jax` | Python text for `TUNED_BLOCK_SIZES_V3` of sglang-jax |
| `tokamax` | JSON: one chip's file of tokamax's own table |
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from rpa_tune.errors import UsageError
from rpa_tune.interop import sglang_jax_tables, tokamax_tables, tpu_inference_tables
from rpa_tune.interop.export_rows import Export, family_of, sort_out, v3_tuple
from rpa_tune.interop.public.tpu_inference.mla import mla_keywords
from rpa_tune.interop.public.tpu_inference.package import WHEEL
from rpa_tune.tables.key import differences
from rpa_tune.tables.row import TableRow


def keywords(row: TableRow) -> dict[str, Any]:
    """The block-size keyword arguments of the public function that a row sets."""
    family, config = family_of(row), row.configs[0]
    kernel, case = family.kernel, family.case
    if kernel == "v3":
        return {f"{case[0]}_block_sizes": v3_tuple(config)}
    if kernel == "hd64":
        pages = config["bkv_sz"] // row.key.page_size
        return {"num_kv_pages_per_block": pages, "num_queries_per_block": config["bq_sz"]}
    if kernel == "mla":
        return {case: config}  # `_mla_keywords` puts both together
    fields = dict(config)
    if kernel == "stacked" and case == "decode":
        del fields["bq_c_sz"]
    name = "decode_block_sizes" if case == "decode" else "prefill_block_sizes"
    return {name: fields}


def export_kwargs(rows: Iterable[TableRow]) -> Export:
    """JSON: for each problem and kernel, the keyword arguments; both cases of a kernel together."""
    export = sort_out(rows, ("v3", "hd64", "batched", "stacked", "mla"), "no place")
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    _leave_out_halves(export)
    for row in export.exported:
        kernel = family_of(row).kernel
        problem = {"chip": row.key.chip, **row.key.to_dict()}
        group = groups.setdefault(
            (kernel, json.dumps(problem)), {"kernel": kernel, "problem": problem, "kwargs": {}}
        )
        group["kwargs"] |= keywords(row)
    for group in groups.values():
        if group["kernel"] == "mla":
            page = group["problem"]["page_size"]
            group["kwargs"] = mla_keywords(**group["kwargs"], page_size=page)
    document = {"tpu_inference": WHEEL.version, "calls": list(groups.values())}
    export.text = json.dumps(document, indent=2) + "\n"
    return export


def _leave_out_halves(export: Export) -> None:
    """Leaves out rows of the latent kernel without one of the other case: it takes both at once."""
    rows = [row for row in export.exported if family_of(row).kernel == "mla"]
    cases = Counter((row.key.chip, json.dumps(row.key.to_dict())) for row in rows)
    for row in rows:
        if cases[row.key.chip, json.dumps(row.key.to_dict())] < 2:
            export.exported.remove(row)
            export.leave_out(row, "the function takes both cases at once, and the other has no row")


def export_env(rows: Iterable[TableRow]) -> Export:
    """Shell lines for the variables that tpu-inference reads; they hold for the whole process.

    Raises:
      UsageError: Two rows of one case differ: the variables can say one of them only.
    """
    export = sort_out(rows, ("v3",), "the variables are read for the v3 kernel only")
    lines: dict[str, tuple[str, TableRow]] = {}
    for row in export.exported:
        name = f"RPA_V3_{family_of(row).case.upper()}_BLOCK_SIZES"
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


EXPORTERS: dict[str, Callable[[Iterable[TableRow]], Export]] = {
    "kwargs": export_kwargs,
    "env": export_env,
    "tpu-inference": tpu_inference_tables.export_tables,
    "sglang-jax": sglang_jax_tables.export_tables,
    "tokamax": tokamax_tables.export_tables,
}
