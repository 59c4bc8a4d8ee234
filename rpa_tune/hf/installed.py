"""What an installed transformers makes of a file: its configuration class knows the defaults.

transformers is optional and needs no PyTorch for this. Where it is installed, its class fills in
what a file leaves out, for types that `types.yaml` does not know, too, and every key of the class
is seen, not just those of the file. A class reads, derives and drops keys in its constructor, so
that its answer is taken whole.
"""

import copy
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rpa_tune.hf.keys import ALIASES


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What transformers says of a file.

    Attributes:
      version: `transformers X.Y.Z`.
      config: All keys, those of the file that the class does not know among them; None when the
        class does not take the file.
      refusal: Why it does not.
    """

    version: str
    config: Mapping[str, Any] | None
    refusal: str = ""


def complete(config: Mapping[str, Any], model_type: str) -> Answer | None:
    """The file with everything that its configuration class fills in.

    Returns:
      None when transformers is not installed, or does not know the type.
    """
    if not importlib.util.find_spec("transformers"):
        return None
    transformers = importlib.import_module("transformers")
    if model_type not in transformers.CONFIG_MAPPING:
        return None
    version = f"transformers {transformers.__version__}"
    # A class may change the lists it is given.
    given = {key: copy.deepcopy(value) for key, value in config.items() if key != "model_type"}
    try:
        made = transformers.CONFIG_MAPPING[model_type](**given)
        found = made.to_dict()
        # Some classes derive these from other keys and do not save them.
        for key in ("layer_types", "num_hidden_layers"):
            if getattr(made, key, None) is not None:
                found[key] = getattr(made, key)
    except Exception as error:  # a class may raise anything about a file that is not its own
        reason = " ".join(str(error).split())
        return Answer(version=version, config=None, refusal=f"{type(error).__name__}: {reason}")
    if not {"num_key_value_heads", *ALIASES["num_key_value_heads"]} & set(found):
        found["num_key_value_heads"] = None  # a class without the key has as many as query heads
    others = {other for name, others in ALIASES.items() if name in found for other in others}
    kept = {key: value for key, value in given.items() if key not in others}
    found = {key: value for key, value in found.items() if key not in others}
    return Answer(version=version, config={**kept, **found, "model_type": model_type})
