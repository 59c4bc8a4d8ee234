"""Names of dtypes as people write them. No jax.

Source of the other names: `_DTYPE_STR_ALIAS_TO_JAX_DTYPE` in utils.py of tpu-inference 0.32.0
(`fp8`, `fp8_e4m3` and `fp8_e5m2` as vLLM means them on a TPU); XLA's and PyTorch's own names.
`float8_e4m3` and the `fnuz` kinds are other dtypes of ml_dtypes, and so no other names of these.
"""

from collections.abc import Sequence

from rpa_kernels.names import did_you_mean, find_name

OTHER_NAMES = {
    "bf16": "bfloat16",
    "fp32": "float32", "f32": "float32", "float": "float32",
    "fp8": "float8_e4m3fn", "fp8_e4m3": "float8_e4m3fn", "fp8_e4m3fn": "float8_e4m3fn",
    "f8e4m3fn": "float8_e4m3fn", "e4m3fn": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2", "f8e5m2": "float8_e5m2", "e5m2": "float8_e5m2",
    "s8": "int8", "i8": "int8",
}  # fmt: skip
_MODULES = ("torch.", "jnp.", "np.", "jax.numpy.", "numpy.", "ml_dtypes.")


def dtype_name(dtype: object, allowed: Sequence[str], what: str) -> str:
    """The name of a dtype that a person wrote, or that an array or jax names.

    Args:
      dtype: A name (`fp8`, `BF16`, `torch.bfloat16`), or a dtype or scalar type with a name.
      allowed: Names that are taken.
      what: What it is the dtype of, for the message.

    Raises:
      ValueError: None of `allowed`.
    """
    word = dtype if isinstance(dtype, str) else _own_name(dtype)
    for module in _MODULES:
        word = word.removeprefix(module)
    found = find_name(word, allowed, OTHER_NAMES)
    if found is None:
        hint = did_you_mean(word or dtype, allowed, OTHER_NAMES)
        raise ValueError(f"{what}={dtype!r} is not a dtype that is served; {hint}")
    return found


def _own_name(dtype: object) -> str:
    """`name` of a dtype (`numpy.dtype`), `__name__` of a scalar type (`jax.numpy.bfloat16`)."""
    return str(getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or "")
