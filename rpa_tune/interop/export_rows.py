"""Which rows a form of export can say, and what every form says of one. No jax."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from rpa_kernels import FAMILIES
from rpa_kernels.problem import Problem
from rpa_tune.interop.public.tokamax.families import TOKAMAX
from rpa_tune.interop.public.tpu_inference.families import TPU_INFERENCE, TpuInferenceFamily
from rpa_tune.interop.public.tpu_inference.package import PACKAGE
from rpa_tune.tables.key import problem_of
from rpa_tune.tables.row import TableRow

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
      kernels: `v3`, `hd64`, `batched`, `stacked`, `mla`, `tokamax`: those that the form has a place
        for.
      why_not: Said of the other public kernels.
    """
    export = Export()
    for row in rows:
        name = row.key.family
        kernel = _kernel(name)
        if name in FAMILIES:
            export.leave_out(row, OURS)
        elif kernel is None:
            export.leave_out(row, f"{name} is no kernel of {PACKAGE.title} or tokamax")
        elif kernel not in kernels:
            export.leave_out(row, f"{kernel}: {why_not}")
        elif len(row.configs) > 1:
            why = f"a rule over {len(row.configs)} configs; the engine has one config per problem"
            export.leave_out(row, why)
        elif row.evidence.speedup is None:
            export.leave_out(row, "the function's default has no time to compare with")
        else:
            export.exported.append(row)
    return export


def _kernel(name: str) -> str | None:
    """`v3`, `hd64`, `batched`, `stacked` or `tokamax`; None for a family of none of them."""
    if name in TOKAMAX:
        return "tokamax"
    family = TPU_INFERENCE.get(name)
    return None if family is None else family.kernel


def asked(export: Export, rows: Iterable[TableRow]) -> Iterator[tuple[TableRow, Problem]]:
    """Each row with the very problem that it was timed on: engines look up by exact windows.

    A row's key rounds windows, and has none for one over the whole context; engines do neither.
    Rows that do not say their problem are left out.
    """
    for row in rows:
        if row.evidence.problem is None:
            why = "an old row: it does not say the exact sizes and window that the engine asks with"
            export.leave_out(row, why)
            continue
        try:
            problem = problem_of(row.key, row.evidence.problem)
        except ValueError as error:
            export.leave_out(row, str(error))
            continue
        yield row, problem


def family_of(row: TableRow) -> TpuInferenceFamily:
    """The public call that an exported row is for."""
    return TPU_INFERENCE[row.key.family]


def v3_tuple(config: dict[str, int]) -> tuple[int, int, int, int]:
    """(bq_sz, bkv_sz, bq_csz, bkv_csz)."""
    return (config["bq_sz"], config["bkv_sz"], config["bq_csz"], config["bkv_csz"])


def comment(row: TableRow) -> str:
    """Where an exported line comes from, as the comment above it."""
    evidence = row.evidence
    gain = "" if evidence.speedup is None else f", {evidence.speedup:.2f}x the function's default"
    return (
        f"# {evidence.verdict}, {evidence.fidelity} {evidence.time_us:,.1f} us{gain}; "
        f"{evidence.workload} {evidence.workload_digest}; libtpu {evidence.libtpu}, {evidence.date}"
    )
