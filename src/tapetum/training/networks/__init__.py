"""Networks by name. Each is one readable file; importing this package imports no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tapetum.core.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NETWORKS: Mapping[str, str] = {
    "compact": "tapetum.training.networks.compact:Compact",
    "contaminants": "tapetum.training.networks.contaminants:Contaminants",
    "sequences": "tapetum.training.networks.sequences:Sequences",
    "tracking": "tapetum.training.networks.tracking:Tracking",
    "variables": "tapetum.training.networks.variables:Variables",
}
"""Name in a recipe -> ``module:class``; the class takes the number of input planes, their side (0 where it
takes any), and the recipe's arguments."""


def build_network(name: str, n_planes: int, size: int, arguments: Mapping[str, Any]) -> Any:
    """Make an untrained network.

    Parameters
    ----------
    name
        A key of `NETWORKS`.
    n_planes, size
        Planes of the input and their side [pixel], 0 for a network that takes any.
    arguments
        Keyword arguments of the class.

    Returns
    -------
    torch.nn.Module
        Maps images (n, n_planes, n_y, n_x) to logits (n, 1), or what else its task learns.

    Raises
    ------
    InputError
        No such network, or it does not take these arguments.
    MissingExtraError
        torch is not installed.
    """
    if name not in NETWORKS:
        raise InputError(f"{name!r} is not a network; known: {', '.join(sorted(NETWORKS))}")
    module, _, attribute = NETWORKS[name].partition(":")
    require_torch()
    make: Callable[..., Any] = getattr(import_module(module), attribute)
    try:
        return make(n_planes, size, **arguments)
    except TypeError as problem:
        raise InputError(f"network {name!r} does not take these arguments: {problem}") from None


def require_torch() -> None:
    """Say what is missing when torch cannot be imported.

    Raises
    ------
    MissingExtraError
        torch is not installed.
    """
    try:
        import_module("torch")
    except ModuleNotFoundError:
        raise MissingExtraError("train", "training a network") from None
