"""Tasks that behave badly, for test_pool.py. They run in worker processes."""

import gzip
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from rpa_tune.candidate import Status
from rpa_tune.compile import worker
from rpa_tune.compile.lint import Lint
from rpa_tune.compile.static_profile import Operation, StaticProfile


def double(value):
    return 2 * value


def double_slowly(value):
    time.sleep(1.0)
    return 2 * value


def pid(_):
    return os.getpid()


def fail(value):
    raise ValueError(f"cannot do {value}\nsecond line")


def fail_inside(_):
    raise RuntimeError(
        "INTERNAL: Traceback (most recent call last):\n  File x\nIndexError: far off\n"
    )


def unpicklable(_):
    return lambda: None


def behave(how):
    """Does what it is told; anything but a bad word is doubled."""
    if how == "abort":
        os.abort()
    if how == "check":
        print("F1123 06:35:34.1 compiler.cc:12] Check failed: a == b", file=sys.stderr, flush=True)
        os.abort()
    if how == "exit":
        os._exit(7)
    if how == "hang":
        worker.report_phase("hanging")
        time.sleep(600)
    if how == "grow":
        hoard = bytearray(b"x" * (1 << 30))
        time.sleep(600)
        return len(hoard)
    return 2 * how


def noisy(value):
    print("noise on stdout", value)
    os.write(1, b"raw noise\n")
    return value


def phases(seconds):
    for name in ("one", "two", "three"):
        worker.report_phase(name)
        time.sleep(seconds)
    return "done"


def killed_the_first_time(marker):
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def killed_every_time(_):
    os.kill(os.getpid(), signal.SIGKILL)


def start_child_and_hang(pid_file):
    child = os.fork()
    if child == 0:
        time.sleep(600)
        os._exit(0)
    Path(pid_file).write_text(str(child))
    time.sleep(600)


def modules(_):
    return sorted(sys.modules)


def environment(name):
    return os.environ.get(name)


def check_right(_):
    return {"max_error": 0.1, "tolerance": 0.2, "problems": []}


def check_wrong(_):
    return {"max_error": 0.3, "tolerance": 0.2, "problems": ["error", "data race"]}


def settings(_):
    """What decides programs here, and what jax makes of it."""
    import jax

    from rpa_tune.compile import target

    config = jax.config
    return (
        target.program_settings(), config.jax_enable_x64, config.jax_default_matmul_precision,
        config.jax_disable_jit,
    )  # fmt: skip


def probe(_):
    """What `doctor` compiles, in a shell whose settings have their effect."""
    if "--break" in os.environ["LIBTPU_INIT_ARGS"]:
        raise ValueError("no such flag")
    if "--abort" in os.environ.get("XLA_FLAGS", ""):
        os.abort()
    golden = Path(__file__).parents[2] / "golden" / "dumps" / "0.0.42.1" / "v6e_decode.txt.gz"
    return SimpleNamespace(
        detail="", seconds=1.0, digest=os.environ.get("JAX_OTHER", ""),
        schedule=gzip.decompress(golden.read_bytes()).decode(),
    )  # fmt: skip


def lint_race(task):
    """What the compiler's linter says of a kernel that copies twice into one buffer."""
    detail = f"in {task.candidate.family.name}"
    return Lint(status=Status.WRONG_ANSWER, kind="dma_race", detail=detail)


def profile_around(candidate):
    """What the compiler estimates of a program: its kernel, and two operations of XLA."""
    return StaticProfile(
        status=Status.OK,
        kernel=Operation(name=candidate.family.name, cycles=1_000),
        around=(Operation(name="copy.1", cycles=1_500, count=2), Operation(name="pad", cycles=500)),
    )


def lint_nothing(_):
    return Lint(status=Status.OK)
