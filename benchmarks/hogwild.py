"""Sparse logistic regression, 500,000 x 50,000, about 75 nonzeros a row: Hogwild beside scikit-learn's SGDClassifier.

``python -m benchmarks.hogwild [--columns text|uniform] [--parts rates,bar,threads] [--pairs 5] [--out FILE.json]``

Three parts, of a minute or two each; what is asked for is measured anew, the others are taken from the file:

- **rates**: scikit-learn's loss after 5 epochs at the best of 3 constant rates, and the fewest epochs in which Hogwild
  reaches it under `SCHEDULE`, at the best of 3 rates too, with one thread.
- **bar**: that loss by two threads. Both fit in turn, `pairs` times: seconds and CPU seconds of scikit-learn's ``fit``
  on rows in memory; of our whole ``train``; from the same rows in memory to the last step, as the bar has it (conf,
  run directory and the first pass over the rows included, final metrics and the picture of the run not); of the steps
  alone (with decoding the rows); and of the turns (scaled up from all but the first one).
- **threads**: 1 to 4, the same epochs: seconds of an epoch and nanoseconds of a nonzero in the turns, delays, share of
  lost updates, final loss over that of one thread; also at a constant rate.

Both sides have the same float32 rows in memory and minimise the same f(w), which one function computes at the end. On a
machine that others use, CPU seconds are worth more than seconds: in CPU time two threads cost about the same as one.

Columns are drawn by a power law (``text``: column d u^3 of a shuffled order; the commonest stands in 9 of 10 rows, so
threads do collide) or uniformly.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.bundle import load
from bigopt.config import load_conf
from bigopt.core.csr import CSR
from bigopt.data.memory import from_arrays
from bigopt.facts import Datasets
from bigopt.fit import train

Array = npt.NDArray[Any]

L2 = 1e-6
EPOCHS = 5
PARTS = ("rates", "bar", "threads")
OURS = {
    "hogwild, 2 threads: to its last step": ("reached", "reached_cpu"),
    "its steps": ("steps", "steps_cpu"),
    "its turns": ("turns", "turns_cpu"),
    "whole train, with metrics and picture": ("whole", "whole_cpu"),
}
"""Lines of the table, and what is timed."""
THEIR_RATES = (0.1, 0.3, 1.0)
OUR_RATES = (0.5, 1.0, 2.0)
SCHEDULE = ("schedule.name=polynomial", "schedule.power=1.5")
CONSTANT = ("schedule.name=constant",)


class Rows(NamedTuple):
    """Rows with labels 0 and 1."""

    X: CSR
    y: Array

    def loss(self, coefficients: Array, intercept: float) -> float:
        """Return f(w): the mean log loss plus l2 ||w||^2, in float64."""
        from scipy.sparse import csr_matrix

        X = csr_matrix((self.X.data, self.X.indices, self.X.indptr), shape=self.X.shape)
        w = np.asarray(coefficients, dtype=np.float64)
        v = X @ w + intercept
        return float(np.mean(np.logaddexp(0.0, v) - self.y * v) + L2 * np.dot(w, w))


def generated(rows: int, columns: int, nonzeros: int, kind: str, folder: Path) -> Rows:
    """Return seeded rows of norm 1 with noisy labels, kept in `folder`."""
    path = folder / f"sparse-{kind}-{rows}x{columns}-{nonzeros}.npz"
    if not path.exists():
        rng = np.random.default_rng(0)
        w = 3.0 * rng.normal(size=columns)
        counts = rng.poisson(nonzeros, size=rows).clip(1)
        places = rng.integers(0, columns, counts.sum())
        if kind == "text":
            places = rng.permutation(columns)[(columns * rng.random(counts.sum()) ** 3).astype(np.int64)]
        keys = np.unique(np.repeat(np.arange(rows), counts) * columns + places)
        row, places = np.divmod(keys, columns)
        starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=rows))])
        values = rng.random(len(keys), dtype=np.float32) + np.float32(0.2)
        values /= np.sqrt(np.add.reduceat(values.astype(np.float64) ** 2, starts[:-1]))[row].astype(np.float32)
        scores = np.add.reduceat(values * w[places], starts[:-1])
        y = (scores + rng.logistic(size=rows) > 0).astype(np.int64)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(path, values=values, places=places.astype(np.int32), starts=starts, y=y)
    with np.load(path) as found:
        return Rows(CSR(found["values"], found["places"], found["starts"], columns), found["y"])


class Fit(NamedTuple):
    """One fit: its loss, seconds and CPU seconds of the call, and what else is known of it."""

    loss: float
    seconds: float
    cpu: float
    more: dict[str, Any]


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return what a call gives, its seconds, and the CPU seconds of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = call()
    return value, time.perf_counter() - wall, time.process_time() - cpu


def theirs(rows: Rows, rate: float) -> Fit:
    """Fit by scikit-learn: alpha = 2 l2, for its penalty is alpha/2 ||w||^2."""
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import SGDClassifier

    X = csr_matrix((rows.X.data, rows.X.indices, rows.X.indptr.astype(np.int32)), shape=rows.X.shape)
    model = SGDClassifier(
        loss="log_loss", alpha=2 * L2, learning_rate="constant", eta0=rate, max_iter=EPOCHS, tol=None, random_state=0
    )
    _, seconds, cpu = timed(lambda: model.fit(X, rows.y))
    return Fit(rows.loss(model.coef_[0], float(model.intercept_[0])), seconds, cpu, {"rate": rate})


def ours(
    rows: Rows, data: Datasets, threads: int, rate: float, epochs: float, schedule: tuple[str, ...] = SCHEDULE
) -> Fit:
    """Fit by Hogwild, a row at a time."""
    with tempfile.TemporaryDirectory() as folder:
        conf = load_conf(
            [],
            [
                *("data.uri=memory", "model.name=logistic", f"model.l2={L2}", "model.standardize=false"),
                *("model.init=zeros", "batch.size=1", "strategy.name=hogwild", f"strategy.threads={threads}"),
                *("backend.name=local", f"backend.workers={threads}", "run.dtype=float32", f"stop.epochs={epochs}"),
                *(*schedule, f"schedule.learning_rate={rate}", f"run.dir={folder}"),
            ],
        )
        stamps = [(time.perf_counter(), time.process_time())]
        result, seconds, cpu = timed(
            lambda: train(conf, data=data, on_step=lambda *_: stamps.append((time.perf_counter(), time.process_time())))
        )
        (called, called_cpu), *stamps = stamps
        run = Path(result["run"])
        told = json.loads((run / "result.json").read_text())
        params = load(run).params
    (first, first_cpu), (last, last_cpu) = stamps[1], stamps[-1]  # after the first turn, which also loads the rows
    share = (len(stamps) - 1) / (len(stamps) - 2)
    more = {"rate": rate, "epochs": epochs, "steps": last - stamps[0][0], "steps_cpu": last_cpu - stamps[0][1]}
    more |= {"reached": last - called, "reached_cpu": last_cpu - called_cpu, "whole": seconds, "whole_cpu": cpu}
    more |= {"turns": (last - first) * share, "turns_cpu": (last_cpu - first_cpu) * share}
    more |= {"tau": told["tau"], "lost_share": told["lost_share"]}
    return Fit(rows.loss(params[:-1], float(params[-1])), seconds, cpu, more)


def table(rows: Rows, kind: str, found: dict[str, Any]) -> str:
    """Return the figures that there are as Markdown."""
    each = rows.X.data.size / len(rows.X)
    lines = [f"{len(rows.X):,} x {rows.X.columns:,}, {each:.1f} nonzeros a row, columns: {kind}"]
    if "bar" in found:
        lines += [
            "",
            "| | loss | epochs | rate | seconds | CPU seconds | over scikit-learn's |",
            "|---|---|---|---|---|---|---|",
        ]
        for name in ("scikit-learn", *OURS):
            one = found["bar"][name]
            figures = f"{one['loss']:.4f} | {one['epochs']} | {one['rate']} | {one['seconds']:.2f} | {one['cpu']:.2f}"
            ratios = f"{one['ratio']:.2f}, {one['ratio_cpu']:.2f}" if "ratio" in one else ""
            lines.append(f"| {name} | {figures} | {ratios} |")
    if "threads" in found:
        lines += [
            "",
            "| threads | schedule | loss / one thread's | seconds an epoch | ns, CPU ns each | tau mean, max | lost |",
            "|---|---|---|---|---|---|---|",
        ]
        for line in found["threads"]:
            tau, lost = line["tau"], line["lost_share"]
            lines.append(
                f"| {line['threads']} | {line['schedule']} | {line['relative']:.4f} | {line['epoch']:.2f} "
                f"| {line['nonzero']:.1f}, {line['nonzero_cpu']:.1f} | {tau['mean']:.1f}, {tau['max']} | {lost:.2%} |"
            )
    return "\n".join(lines)


def side(fits: list[Fit], times: list[tuple[float, float]], epochs: float) -> dict[str, Any]:
    """Return the medians of a side: loss, and seconds and CPU seconds of what was timed."""
    seconds, cpu = (statistics.median(time[k] for time in times) for k in (0, 1))
    loss = statistics.median(fit.loss for fit in fits)
    return {"epochs": epochs, "rate": fits[0].more["rate"], "loss": loss, "seconds": seconds, "cpu": cpu}


def best_rates(rows: Rows, data: Datasets) -> dict[str, Any]:
    """Return both sides' best rates, and our fewest epochs."""
    peer = min((theirs(rows, rate) for rate in THEIR_RATES), key=lambda fit: fit.loss)
    for epochs in range(1, 2 * EPOCHS):
        best = min((ours(rows, data, 1, rate, epochs) for rate in OUR_RATES), key=lambda fit: fit.loss)
        if best.loss <= peer.loss:
            break
    return {"theirs": peer.more["rate"], "ours": best.more["rate"], "epochs": best.more["epochs"]}


def pairs_of(rows: Rows, data: Datasets, rates: dict[str, Any], pairs: int) -> dict[str, Any]:
    """Return both sides' medians, and those of the ratios, pair by pair."""
    theirs_, ours_ = [], []
    for _ in range(pairs):
        theirs_.append(theirs(rows, rates["theirs"]))
        ours_.append(ours(rows, data, 2, rates["ours"], rates["epochs"]))
    bar: dict[str, Any] = {"scikit-learn": side(theirs_, [(fit.seconds, fit.cpu) for fit in theirs_], EPOCHS)}
    for name, (wall, cpu) in OURS.items():
        times = [(fit.more[wall], fit.more[cpu]) for fit in ours_]
        bar[name] = side(ours_, times, rates["epochs"])
        bar[name]["ratio"] = statistics.median(a[0] / b.seconds for a, b in zip(times, theirs_, strict=True))
        bar[name]["ratio_cpu"] = statistics.median(a[1] / b.cpu for a, b in zip(times, theirs_, strict=True))
    bar["reached"] = all(b.loss <= a.loss for a, b in zip(theirs_, ours_, strict=True))
    return bar


def by_threads(rows: Rows, data: Datasets, rates: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what becomes of the loss and of the time with more threads."""
    lines: list[dict[str, Any]] = []
    epochs, nonzeros = rates["epochs"], rows.X.data.size
    for schedule, eta in ((SCHEDULE, rates["ours"]), (CONSTANT, rates["theirs"])):
        serial = None
        for threads in (1, 2, 3, 4):
            fit = ours(rows, data, threads, eta, epochs, schedule)
            serial = serial or fit
            lines.append(
                {
                    "threads": threads,
                    "schedule": schedule[0].partition("=")[2],
                    "relative": fit.loss / serial.loss,
                    "epoch": fit.more["turns"] / epochs,
                    "nonzero": fit.more["turns"] / epochs / nonzeros * 1e9,
                    "nonzero_cpu": fit.more["turns_cpu"] / epochs / nonzeros * 1e9,
                    "tau": fit.more["tau"],
                    "lost_share": fit.more["lost_share"],
                }
            )
    return lines


def measured(rows: Rows, found: dict[str, Any], parts: list[str], pairs: int) -> dict[str, Any]:
    """Return the figures of one problem: those found before, and the parts asked for."""
    data = Datasets(from_arrays(rows.X, rows.y), None)
    ours(rows, data, 2, 1.0, 0.5)  # compiles, or loads what was compiled
    if "rates" in parts:
        found = {"rates": best_rates(rows, data)}
    if "rates" not in found:
        sys.exit("the part 'rates' has to be measured first")
    if "bar" in parts:
        found["bar"] = pairs_of(rows, data, found["rates"], pairs)
    if "threads" in parts:
        found["threads"] = by_threads(rows, data, found["rates"])
    return found


def main() -> int:
    """Print the tables; write the figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", choices=("text", "uniform"), help="both where left out")
    parser.add_argument("--parts", default=",".join(PARTS), help="of rates, bar, threads; all where left out")
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--features", type=int, default=50_000)
    parser.add_argument("--nonzeros", type=int, default=75)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks/data"))
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks/hogwild.json"))
    options = parser.parse_args()
    parts = options.parts.split(",")
    if not set(parts) <= set(PARTS):
        parser.error(f"--parts {options.parts}: {', '.join(PARTS)}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for kind in (options.columns,) if options.columns else ("text", "uniform"):
        rows = generated(options.rows, options.features, options.nonzeros, kind, options.work)
        found = json.loads(options.out.read_text()) if options.out.exists() else {}
        problem = f"{kind} {options.rows}x{options.features}-{options.nonzeros}"
        found[problem] = measured(rows, found.get(problem, {}), parts, options.pairs)
        options.out.write_text(json.dumps(found, indent=2) + "\n")
        print(table(rows, kind, found[problem]), flush=True)
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
