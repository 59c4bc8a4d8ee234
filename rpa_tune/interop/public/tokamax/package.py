"""tokamax: the version that is supported, and what its kernel runs on. No jax."""

from rpa_tune.interop.public.package import PublicPackage
from rpa_tune.interop.public.wheel import Wheel

WHEEL = Wheel(project="tokamax", name="tokamax", version="0.0.17", package="tokamax")
# Source: its kernel's sources use the syntax of Python 3.12; `requires-dist` of the wheel says
# jax >= 0.11.1.
PACKAGE = PublicPackage(
    name="tokamax", wheel=WHEEL, revision=1, least_python=(3, 12), least_jax=(0, 11, 1)
)
# Source: `supported_on` of its operator, TPU generation 5 and later.
CHIPS = ("v5e", "v5p", "v6e", "v7x")
