"""Names of strategies to their machines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from bigopt.core.names import lookup
from bigopt.strategies import (
    asynchronous,
    backup,
    compressed,
    hogwild,
    hybrid,
    local,
    model_parallel,
    replicas,
    served,
    sync,
)
from bigopt.strategies.base import Array, Machine, Setting


class StrategyEntry(NamedTuple):
    """How a strategy begins, and how it goes on from a state.

    Parameters
    ----------
    start : callable
        ``start(setting, params)`` gives the state before the first step; params of shape (p,) in ``run.dtype``.
    machine : callable
        ``machine(setting, state)`` gives the machine; it takes over the state's buffers.
    """

    start: Callable[[Setting, Array], Any]
    machine: Callable[[Setting, Any], Machine]


def _either(whole: StrategyEntry, codes: StrategyEntry) -> StrategyEntry:
    """Return the entry of a strategy that has another machine where gradients travel as codes."""

    def chosen(setting: Setting) -> StrategyEntry:
        return whole if setting.compressed is None else codes

    return StrategyEntry(
        lambda setting, params: chosen(setting).start(setting, params),
        lambda setting, state: chosen(setting).machine(setting, state),
    )


STRATEGIES: Final[Mapping[str, StrategyEntry]] = MappingProxyType(
    {
        "sync": _either(StrategyEntry(sync.start, sync.Sync), StrategyEntry(compressed.start, compressed.machine)),
        "backup": _either(
            StrategyEntry(sync.start, backup.machine), StrategyEntry(compressed.start, backup.compressed_machine)
        ),
        "async": StrategyEntry(asynchronous.start, asynchronous.machine),
        "ssp": StrategyEntry(asynchronous.start, asynchronous.machine),
        "hogwild": StrategyEntry(hogwild.start, hogwild.machine),
        "local_sgd": StrategyEntry(local.start, local.machine),
        "downpour": StrategyEntry(served.start, served.machine),
        "easgd": StrategyEntry(replicas.start, replicas.machine),
        "model_parallel": StrategyEntry(model_parallel.start, model_parallel.machine),
        "hybrid": StrategyEntry(hybrid.start, hybrid.machine),
    }
)
"""Names of ``strategy.name``."""


def strategy(name: str) -> StrategyEntry:
    """Return the entry of a name."""
    return lookup(STRATEGIES, name, family="strategy", where="strategy.name")
