"""A session without threads whose arrivals come in an order that the test chooses, and machines on a small problem."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from bigopt.backends.ledger import Ledger, Rounds
from bigopt.data.cache import BlockCache
from bigopt.data.memory import from_arrays
from bigopt.data.plan import Plan
from bigopt.data.shares import Shares
from bigopt.data.view import DataView, Targets
from bigopt.models.linear import LinearModel
from bigopt.models.losses import SquaredLoss
from bigopt.models.penalties import Penalty
from bigopt.optim.build import build_transform
from bigopt.optim.method import FirstOrder
from bigopt.optim.schedules import SCHEDULES
from bigopt.strategies.base import Evaluation, Machine, Setting, StepRecord
from bigopt.work import Arrival, GradientSum, Order, execute
from bigopt.work_local import LocalSteps

SIZES = (40, 31, 3, 57, 20, 49)
DTYPE = "float64"


class Arena:
    """Slots that compute one order after another; `pick` chooses which slot is the next to be done."""

    def __init__(self, slots: int, pick: Callable[[list[int]], int], *, lose: float = 0.0, repeat: float = 0.0) -> None:
        self.slots = slots
        self._pick = pick
        self._queues: list[deque[Order]] = [deque() for _ in range(slots)]
        self._again: deque[Arrival] = deque()
        self._chance = np.random.default_rng(7)
        self._lose, self._repeat = lose, repeat
        self._blocks = BlockCache(10**8)

    @property
    def pending(self) -> bool:
        return bool(self._again or any(self._queues))

    def submit(self, order: Order) -> None:
        self._queues[order.slot % self.slots].append(order)

    def wait(self) -> Arrival:
        if self._again and self._chance.random() < 0.5:
            return self._again.popleft()
        busy = [slot for slot, queue in enumerate(self._queues) if queue]
        if not busy:
            return self._again.popleft()
        order = self._queues[self._pick(busy)].popleft()
        if self._chance.random() < self._lose:
            return Arrival(order, lost="on purpose")
        nodes, stats = execute(self._blocks, order.work, order.inputs, order.leaves, order.start, order.units)
        arrival = Arrival(order, nodes, stats)
        if self._chance.random() < self._repeat:
            nodes, stats = execute(self._blocks, order.work, order.inputs, order.leaves, order.start, order.units)
            self._again.append(Arrival(order, nodes, stats))
        return arrival


def picker(seed: int) -> Callable[[list[int]], int]:
    """Choose any busy slot, by a seeded stream."""
    rng = np.random.default_rng(seed)
    return lambda busy: int(rng.choice(busy))


class Case:
    """Ridge regression on six unequal partitions."""

    def __init__(
        self,
        *,
        size: int | None = 32,
        optimizer: str = "sgd",
        rate: float = 0.02,
        steps: int | None = 40,
        l2: float = 0.01,
        sampling: str = "permuted",
        lanes: int = 0,
        weighted: bool = False,
    ) -> None:
        rng = np.random.default_rng(3)
        n = sum(SIZES)
        X = rng.normal(size=(n, 4))
        y = X @ np.array([1.0, -2.0, 0.5, 3.0]) + 0.3 + 0.1 * rng.normal(size=n)
        weight = rng.uniform(0.5, 2.0, size=n) if weighted else None
        data = from_arrays(X, y, weight, partition_rows=list(SIZES))
        bounds = np.cumsum([0, *SIZES])
        self.view = DataView(data.source, bounds, DTYPE, targets=Targets("values"))
        self.model = LinearModel(4, 1, SquaredLoss())
        self.weight = float(n if weight is None else weight.sum())
        self.plan = Plan(np.array(SIZES), size, lanes, 5, sampling)  # type: ignore[arg-type]
        self.penalty = Penalty(l2)
        self.rate = rate
        self.steps = steps
        self.optimizer = optimizer
        self.ledger = Ledger()

    def method(self, optimizer: str | None = None, rate: float | None = None, *, penalty: bool = True) -> FirstOrder:
        schedule = SCHEDULES["constant"](self.rate if rate is None else rate)
        layout = self.model.layout
        add = (lambda grad, params: self.penalty.add_gradient(grad, params, layout)) if penalty else None
        return FirstOrder(build_transform(optimizer or self.optimizer), schedule, layout, penalty=add)

    def setting(self, **more: Any) -> Setting:
        work = GradientSum(self.model, self.view, self.plan.seed, DTYPE, 16)
        return Setting(
            method=self.method(),
            plan=self.plan,
            evaluate=lambda kind: Evaluation(work, lambda inputs, root: root),
            penalty=lambda params: self.penalty.value(params, self.model.layout),
            total_weight=self.weight,
            rounds=Rounds(self.ledger, 50),
            **{"steps": self.steps, **more},
        )

    def rates(self, first: int, last: int) -> np.ndarray:
        return np.full(last - first, self.rate)

    def local(self, replicas: int, answer: str) -> LocalSteps:
        shares = Shares.of(self.plan, replicas, own=answer == "replica")
        return LocalSteps(
            self.model,
            self.view,
            shares,
            self.weight,
            self.penalty,
            DTYPE,
            16,
            answer=answer,  # type: ignore[arg-type]
        )

    def start(self) -> np.ndarray:
        return np.zeros(self.model.layout.size)

    def optimum(self) -> np.ndarray:
        """The minimum by the normal equations."""
        blocks = [self.view.load(m) for m in range(len(SIZES))]
        X = np.concatenate([b.X for b in blocks])
        y = np.concatenate([b.y for b in blocks])[:, 0]
        A = np.column_stack([X, np.ones(len(X))])
        H = A.T @ A / len(A) + self.penalty.l2 * np.diag([1, 1, 1, 1, 0])
        return np.linalg.solve(H, A.T @ y / len(A))


def drive(machine: Machine, session: Any, rounds: Rounds, *, updates: int | None = None) -> list[StepRecord]:
    """Run a machine as the loop of a run does; end where it has nothing more to do, or after some updates."""
    records: list[StepRecord] = []
    for order in machine.more(session.slots):
        session.submit(order)
    while session.pending:
        for order in machine.handle(rounds.wait(session)):
            session.submit(order)
        while (record := machine.advance()) is not None:
            records.append(record)
            if updates is not None and len(records) >= updates:
                return records
        for order in machine.more(session.slots):
            session.submit(order)
    return records
