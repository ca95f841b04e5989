"""From a problem and a conf to what a strategy's machine is made from.

Replicated strategies count time in batches of ``batch.size`` rows over all replicas, whoever takes them: that is what a
step is, and what the schedule's k counts. A server's updates come at a pace of their own, so its method is told where
the run stands, in batches, and its schedule goes by that.
"""

from __future__ import annotations

import csv
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from bigopt import sessions
from bigopt.backends.ledger import Rounds
from bigopt.core.compiled import NUMPY
from bigopt.core.compress import compressor
from bigopt.core.errors import ConfError
from bigopt.data.shares import Shares
from bigopt.optim.build import build_method
from bigopt.optim.method import FirstOrder, Method
from bigopt.optim.schedules import Compressed
from bigopt.problem import Problem
from bigopt.strategies.base import Blocks, Rates, Setting, silent
from bigopt.strategies.gates import Update, no_log
from bigopt.strategies.hogwild import TURNS
from bigopt.work_compressed import CompressedSum
from bigopt.work_hogwild import HogwildSteps, has_loop
from bigopt.work_local import Answer, LocalSteps

if TYPE_CHECKING:
    from bigopt.config import Conf

Array = npt.NDArray[Any]


def strategy_setting(
    problem: Problem,
    conf: Conf,
    rounds: Rounds,
    length: int | None,
    *,
    steps: int | None = None,
    slots: int = 1,
    log: Callable[[Update], object] = no_log,
    tell: Callable[[str], object] = silent,
    rate: float = 1.0,
) -> Setting:
    """Return what the strategy's machine is made from.

    Parameters
    ----------
    problem : Problem
    conf : Conf
    rounds : Rounds
    length : int or None
        Steps planned at the first start: what a schedule's period of null means.
    steps : int or None
        Steps at which this run ends.
    slots : int
        Workers at this start.
    log : callable
        Takes every `Update` of an asynchronous strategy.
    tell : callable
        Takes what a person should know.
    rate : float
        What the learning rate is multiplied by.

    Raises
    ------
    ConfError
        Methods and keys that do not go with the strategy.
    """
    from bigopt.config import choose_backend

    layout, options = problem.model.layout, conf.strategy
    common = problem.setting(conf, rounds, length, rate=rate)
    method = common.method
    many = options.name in ("sync", "backup") or options.solver == "coordinate"
    if not many and not isinstance(method, FirstOrder):
        raise conf.error(
            "strategy.name",
            f"strategy '{options.name}' takes one gradient a step, {conf.optimizer.name} with "
            f"{conf.schedule.name} asks several times",
            "strategy sync",
        )

    def local(replicas: int, answer: Answer) -> tuple[LocalSteps, Rates]:
        shares = Shares.of(problem.plan, replicas, own=answer == "replica")
        work = LocalSteps(
            problem.model,
            problem.view,
            shares,
            problem.total_weight,
            problem.penalty,
            conf.run.dtype,
            problem.block_rows,
            problem.device,
            answer,
            problem.kernels,
        )
        return work, _rates(problem, conf, length, rate)

    def hogwild() -> tuple[HogwildSteps, Rates, int]:
        shares, looped = Shares.of(problem.plan, 1), problem.plan.size == 1 and has_loop(problem.model)
        if problem.device == "gpu":
            raise conf.error("backend.device", "hogwild is threads of a CPU", "backend.device=cpu")
        if shares.sampling == "bernoulli" and shares.size == 1:
            raise conf.error("batch.sampling", "hogwild takes no random numbers of rows", "permuted or replacement")
        if options.write == "atomic_add" and not (looped and problem.kernels != NUMPY):
            raise conf.error(
                "strategy.write", "atomic_add is the compiled loop's, over batches of one row", "overwrite"
            )
        backend, _ = choose_backend(conf, under_spark=sessions.under_spark())
        replicas = 1 if backend == "local" else slots
        work = HogwildSteps(
            problem.model,
            problem.view,
            shares if (problem.plan.size or problem.plan.rows) < replicas else Shares.of(problem.plan, replicas),
            problem.total_weight,
            problem.penalty,
            conf.run.dtype,
            problem.block_rows,
            turn=-(-problem.plan.steps_per_epoch // TURNS),
            threads=options.threads or (slots if backend == "local" else 1),
            write=options.write or "overwrite",
            kernels=problem.kernels,
        )
        return work, _rates(problem, conf, length, rate), replicas

    def compressed(replicas: int) -> CompressedSum:
        spec = options.compression
        if problem.view.source.sparse:
            raise conf.error(
                "strategy.compression.name",
                "gradients of sparse rows travel as their nonzero entries already",
                "strategy.compression.name=null",
            )
        code = compressor(
            spec.name or "",
            problem.model.layout.offsets,
            fraction=spec.fraction or 1.0,
            seed=conf.run.seed,
            feedback=spec.error_feedback,
        )
        return CompressedSum(
            problem.gradient(conf.run.dtype),
            Shares.of(problem.plan, replicas),
            problem.total_weight / problem.plan.rows,
            code,
            spec.error_feedback,
            secrets.token_hex(8),
        )

    def server(name: str | None, keys: Mapping[str, Any], rate: float | None) -> Method[Any]:
        if name is not None:
            return build_method(name, layout, keys=keys, schedule_keys={"learning_rate": rate})
        assert isinstance(method, FirstOrder)
        if method.unit == "step":  # the server is told batches for epochs
            return replace(method, penalty=None, unit="epoch")
        pace = 1.0 / problem.plan.steps_per_epoch
        return replace(method, penalty=None, schedule=Compressed(method.schedule, pace))

    def blocks() -> Blocks:
        return Blocks(
            problem.model,
            problem.view,
            options.blocks or problem.facts.slots,
            conf.run.dtype,
            problem.block_rows,
            problem.device,
            problem.kernels,
            conf.data.memory,
            problem.facts.slots,
            problem.penalty,
        )

    return replace(
        common,
        steps=steps,
        slots=slots,
        options={f: getattr(options, f) for f in options.__struct_fields__},
        local=local,
        hogwild=hogwild,
        server=server,
        compressed=None if options.compression.name is None else compressed,
        blocks=blocks,
        log=log,
        tell=tell,
        shards_at=(towards(conf), conf.backend.timeout),
        replay=None if options.replay is None else read_updates(Path(options.replay)),
    )


def towards(conf: Conf) -> str:
    """Return a host that all workers reach: that of the cluster's address, else this machine's loopback."""
    address = conf.backend.address
    return "127.0.0.1" if address is None else urlsplit(address).hostname or "127.0.0.1"


def _rates(problem: Problem, conf: Conf, length: int | None, rate: float) -> Rates:
    """The schedule of the local steps: the conf's, from ``strategy.local_learning_rate`` where that is given."""
    from bigopt.config import fill

    local = conf.strategy.local_learning_rate
    if local is not None:
        conf = fill(conf, {"schedule.learning_rate": local}, "strategy.local_learning_rate")
    method = problem.method(conf, length, rate=rate)
    assert isinstance(method, FirstOrder)
    schedule, pace = method.schedule, 1.0 if method.unit == "step" else 1.0 / problem.plan.steps_per_epoch

    def rates(first: int, last: int) -> Array:
        return np.array([schedule(step * pace) for step in range(first, last)], dtype=np.float64)

    return rates


def read_updates(path: Path) -> Sequence[Update]:
    """Read the log of an asynchronous run: ``updates.csv`` of its run directory.

    Raises
    ------
    ConfError
        A file that is not there or is no such log, with the line.
    """
    found: list[Update] = []
    try:
        with path.open(newline="", encoding="ascii") as handle:
            for number, row in enumerate(csv.reader(handle), 1):
                if number == 1:
                    if row != list(Update._fields):
                        raise ValueError
                    continue
                found.append(Update(*map(int, row)))
    except FileNotFoundError:
        raise ConfError("no such file", where=str(path), hint="strategy.replay is the updates.csv of a run") from None
    except (ValueError, TypeError):
        where = f"{path}, line {len(found) + 1 + bool(found)}"
        raise ConfError("not a line of an updates.csv", where=where, hint="ticket,version,worker") from None
    return found
