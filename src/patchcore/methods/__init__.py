"""The methods by name: PatchCore, FastFlow, and those that are registered beside them. No torch on import."""

from __future__ import annotations

from patchcore.methods import fastflow, patchcore
from patchcore.methods.method import Method

METHODS: dict[str, Method] = {method.name: method for method in (patchcore.METHOD, fastflow.METHOD)}


def register(method: Method) -> None:
    """Add a method from elsewhere, so that its models load and its command line can be built.

    Raises:
        ValueError: another method has its name.
    """
    if METHODS.setdefault(method.name, method) is not method:
        raise ValueError(f"there is a method {method.name!r} already")
