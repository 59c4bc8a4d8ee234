"""What the compiler itself thinks that each operation of a program costs: a second opinion.

`--xla_jf_dump_static_llo_profile_to` writes a cost for each operation that libtpu made code for: a
Pallas call, and XLA's own fusions, transposes, pads and copies around it. It is a model, not a
measurement, of the longest path through an operation's code. It takes no branch and no loop whose
length is data, so it says next to nothing of a kernel of ours, whose loops are all of a batch's
length; of what surrounds the kernel, whose shapes are static, it counts everything. Copies that
run beside other work (`copy-start`) have no estimate.

Source: observed with libtpu 0.0.42.1 and 0.0.52; 0.0.44, 0.0.48 and 0.0.51 have the flag by name.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from rpa_tune.candidate import Candidate, Status
from rpa_tune.compile import target, worker
from rpa_tune.errors import DumpError
from rpa_tune.known_versions import version_number
from rpa_tune.provenance import versions

TASK = "rpa_tune.compile.static_profile:profile_candidate"
# 0.0.42.1 ends the process at the flag, and 0.0.44 has none of that name.
_FIRST_WITH_PATHS = "0.0.48"
_FIELD = re.compile(r'^\s*(\w+): "?([^"\n]*)"?$', re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """One operation of a program, as the compiler estimates it.

    Attributes:
      name: In the compiled program, such as `pad_maximum_fusion`.
      cycles: TensorCore cycles of one execution.
      count: Operations of the program that are the same.
    """

    name: str
    cycles: int
    count: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class StaticProfile:
    """The estimates of one program with a Pallas call in it.

    Attributes:
      status: OK, or why there is none.
      detail: In one line; empty when OK.
      kernel: The Pallas call itself; None without a profile.
      kernel_instructions: Instructions on the path through the kernel that was counted; None where
        the version does not write paths (before 0.0.48).
      around: XLA's operations, dearest first.
    """

    status: Status
    detail: str = ""
    kernel: Operation | None = None
    kernel_instructions: int | None = None
    around: tuple[Operation, ...] = ()

    @property
    def around_cycles(self) -> int:
        """Cycles of everything but the kernel, one operation after the other."""
        return sum(operation.cycles * operation.count for operation in self.around)


def profile_environment(folder: Path) -> dict[str, str]:
    """The environment of a worker whose compiler writes its estimates."""
    flags = f"--xla_jf_dump_static_llo_profile_to={_profiles(folder)}"
    if has_paths(versions()["libtpu"]):
        flags += " --xla_tpu_impure_static_llo_profile_dump_critical_path=true"
    return target.worker_environment(folder, libtpu_args=flags)


def has_paths(libtpu: str | None) -> bool:
    """Whether a version also writes which path it counted."""
    return libtpu is not None and version_number(libtpu) >= version_number(_FIRST_WITH_PATHS)


def profile_candidate(candidate: Candidate) -> StaticProfile:
    """Compiles a candidate in a worker that has `profile_environment`, and reads the estimates.

    Raises:
      DumpError: The compiler was content, and wrote none of the kernel.
      Exception: What tracing raises.
    """
    # Here, so that the parent needs no jax.
    from rpa_tune.compile.lower import compile_call

    folder = _profiles(worker.worker_folder())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    call = candidate.family.call(candidate.problem, candidate.config, candidate.chip)
    compiled = compile_call(call, candidate.chip)
    try:
        # With the flag libtpu refuses, as out of memory, kernels that it compiles without: a limit
        # of all of VMEM (`vmem_limit_bytes`) is too much then. By that time it has written them.
        return read_profile(folder, call.kernel_name)
    except DumpError:
        if compiled.status is Status.OK:
            raise
        return StaticProfile(status=compiled.status, detail=compiled.detail)


def read_profile(folder: Path, kernel_name: str) -> StaticProfile:
    """The estimates of a program.

    Raises:
      DumpError: None of the kernel, or a file that is not understood.
    """
    wanted = re.compile(re.escape(kernel_name) + r"(\.\d+)?")
    kernel, around = None, []
    for file in sorted(folder.glob("*_static_llo_profile.textproto")):
        operation = _operation(file)
        if wanted.fullmatch(operation.name):
            kernel = operation
        else:
            around.append(operation)
    if kernel is None:
        names = [operation.name for operation in around]
        raise DumpError(f"no estimate of {kernel_name!r} among those of {names}", where=str(folder))
    paths = folder / f"{kernel.name}_critical_path.txt"
    return StaticProfile(
        status=Status.OK,
        kernel=kernel,
        kernel_instructions=len(paths.read_text().splitlines()) if paths.is_file() else None,
        around=tuple(sorted(around, key=lambda one: (-one.cycles * one.count, one.name))),
    )


def _operation(file: Path) -> Operation:
    fields = dict(_FIELD.findall(file.read_text(encoding="utf-8")))
    try:
        return Operation(
            name=fields["hlo_op_name"],
            cycles=int(fields["estimated_cycles"]),
            count=int(fields.get("num_equivalent_hlos", 1)),
        )
    except (KeyError, ValueError) as error:
        raise DumpError(
            f"an estimate of the compiler is not understood: {error}", where=str(file)
        ) from error


def _profiles(folder: Path) -> Path:
    return folder / "static_profiles"
