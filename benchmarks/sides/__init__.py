"""Who computes: bigopt (`ours`), the peers, and the limits of the machine. Each class lives in a process of its own.

A side has ``run()``, which returns a sample with ``seconds`` of one unit of its work (a step, an iteration, an epoch, a
fit); ``judge()``, which is called after each run that counts and adds to its sample what is found out off the clock,
the loss that it ended with; ``check()``, which is called once after the first run and returns what must be the same for
all, the loss; ``profile()``, where a bar is missed; and ``close()``.
"""

from __future__ import annotations

from typing import Any


class Base:
    """What a side has when it has nothing of its own."""

    def judge(self) -> dict[str, Any]:
        """Return nothing to add."""
        return {}

    def check(self) -> dict[str, Any]:
        """Return nothing to compare."""
        return {}

    def profile(self) -> dict[str, Any] | None:
        """Return no profile."""
        return None
