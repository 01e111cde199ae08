"""The few facts on configs that cannot be found by trying, since the config of a model does not show them.

Some classes read a value that their config need not have, and compute it from others where it is absent. A value of the
config can then change what the absent one would be, and only a config that states it says what is meant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

IMPLIED: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    # the width of a head, in the classes that allow heads that do not add up to the width of the model
    "head_dim": lambda config: config["hidden_size"] // config["num_attention_heads"],
}
"""By key: what classes that read it take it for where it is absent."""


def implied_values(data: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are absent from a config and that its other values imply, if a class reads them at all."""
    found = {}
    for key, value_of in IMPLIED.items():
        if data.get(key) is None:
            try:
                found[key] = value_of(data)
            except (KeyError, TypeError, ZeroDivisionError):
                continue
    return found
