"""A driver that loses a worker in mid-run and is then killed itself; ``python killed_job.py STEP KEY=VALUE ...``.

The worker is killed while it computes, at its ninth order or so; the driver kills itself after a later step.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from killer import Killer

from bigopt import sessions
from bigopt.config import load_conf
from bigopt.fit import train


def main(last: int, keys: list[str]) -> None:
    """Train until both are dead."""
    made: list[Killer] = []
    real = sessions.open_session

    def opened(*args: Any) -> Killer:
        made.append(Killer(real(*args), at=(9,)))
        return made[-1]

    def on_step(step: int, epochs: float, params: Any) -> None:
        if step >= last and made[-1].killed:
            os.kill(os.getpid(), signal.SIGKILL)

    sessions.open_session = opened  # type: ignore[assignment]
    train(load_conf([], keys), on_step=on_step)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
