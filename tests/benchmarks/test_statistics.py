"""What the benchmark suite does with measured numbers."""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import data, evaluate, machine, report, rounds
from benchmarks.cast import Cast
from benchmarks.harness import Outcome, RowResult, run_row
from benchmarks.looking import Looks
from benchmarks.player import Skip
from benchmarks.spec import Figure, Row, Scale, Side
from benchmarks.statistics import Bar, Load, Spread, agree, disagreement, pairs_for, spread, together


@pytest.mark.parametrize("n", [1, 2, 3, 7, 10])
def test_spread_is_numpys_percentiles(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n).tolist()
    assert spread(values) == pytest.approx((*np.percentile(values, [50, 25, 75]), n))


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_no_spread_of_nothing_or_of_no_numbers(values: list[float]) -> None:
    with pytest.raises(ValueError, match="no spread"):
        spread(values)


def test_a_bar_is_judged_by_the_median_and_close_when_the_quartiles_straddle_it() -> None:
    least, most = Bar("at least", 2.0), Bar("at most", 2.0)
    assert least.verdict(Spread(2.0, 1.5, 2.5, 7)) == "reached"
    assert least.verdict(Spread(1.9, 1.5, 2.5, 7)) == "close"
    assert least.verdict(Spread(1.9, 1.5, 1.95, 7)) == "not reached"
    assert most.verdict(Spread(2.0, 1.5, 2.5, 7)) == "reached"
    assert most.verdict(Spread(2.1, 1.5, 2.5, 7)) == "close"
    assert most.verdict(Spread(2.1, 2.05, 2.5, 7)) == "not reached"


def test_a_round_counts_while_others_use_at_most_a_twentieth_of_the_cores() -> None:
    def load(foreign: float) -> Load:
        return Load(wall=10.0, ours=12.0, machine=12.0 + foreign, cores=2)

    assert disagreement(load(0.0)) == ""
    assert disagreement(load(1.0)) == ""
    assert disagreement(load(-0.5)) == ""  # the machine's ticks lag behind
    assert disagreement(load(2.0)) == "others used 0.20 of 2 cores for 10.0 s"


def test_pairs() -> None:
    assert [pairs_for(s, quick=False) for s in (1.0, 15.0, 15.1)] == [7, 7, 3]
    assert pairs_for(1.0, quick=True) == 3


def test_losses_agree_relatively() -> None:
    assert agree([0.5, 0.5000004], 1e-6)
    assert not agree([0.5, 0.500001], 1e-6)
    assert agree([0.5, 0.5], 0.0)
    assert not agree([0.5, math.nan], 1.0)


def test_the_clocks_of_the_machine_see_this_process_work() -> None:
    watch = machine.Watch(os.getpid())
    if not watch.known:
        pytest.skip("no /proc")
    begin = time.process_time()
    while time.process_time() - begin < 0.2:
        pass
    load = watch.load()
    assert load.ours == pytest.approx(time.process_time() - begin, abs=0.05)
    assert load.machine >= load.ours - 0.1
    assert load.cores == len(os.sched_getaffinity(0))


UNHEARD = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
if not os.fork():
    while time.process_time() < 0.3:
        pass
    time.sleep(0.5)
    os._exit(0)
time.sleep(1.0)
"""


def test_the_time_of_children_that_nobody_waits_for_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_LOOK_SECONDS", 0.05)
    watch = machine.Watch(os.getpid())
    if not watch.known:
        pytest.skip("no /proc")
    subprocess.run([sys.executable, "-c", UNHEARD], check=True)
    assert watch.load().ours > 0.3


def test_the_referees_gradient_is_the_derivative_of_its_loss() -> None:
    rng = np.random.default_rng(0)
    X, y, w = rng.normal(size=(50, 3)), rng.integers(0, 2, 50), rng.normal(size=4)
    found = evaluate.logistic_gradient(X, y, w[:-1], w[-1]) / len(X)
    for i, h in itertools.product(range(4), [1e-5]):
        step = np.eye(4)[i] * h
        up, down = (evaluate.logistic(X, y, v[:-1], v[-1]) for v in (w + step, w - step))
        assert found[i] == pytest.approx((up - down) / (2 * h), abs=1e-8)


def test_the_referee_adds_blocks_up_and_judges_the_same_bits_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "_ROWS", 300)
    X, y = data.load(data.arrays(data.Table("linear", 1_000, 5), tmp_path))
    referee = evaluate.Referee("logistic", str(tmp_path / "linear-1000x5-2"), l2=0.5)
    w = np.linspace(-1, 1, 6)
    v = X.astype(np.float64) @ w[:-1] + w[-1]
    expected = np.mean(np.log1p(np.exp(v)) - y * v) + 0.5 * w[:-1] @ w[:-1]
    assert referee.loss(w) == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr(evaluate, "logistic", None)
    assert referee.loss(w.tolist()) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(TypeError):
        referee.loss(w + 1)


def test_the_referees_network_without_hidden_layers_is_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    X, y, w = rng.normal(size=(50, 3)), rng.integers(0, 2, 50), rng.normal(size=4)
    layers = evaluate.layers_of(np.concatenate([np.c_[np.zeros(3), w[:-1]].ravel(), [0.0, w[-1]]]), [3, 2])
    assert evaluate.network(X, y, layers, "relu") == pytest.approx(evaluate.logistic(X, y, w[:-1], w[-1]))


def test_data_are_the_same_bits_every_time(tmp_path: Path) -> None:
    table = data.Table("digits", 1_000, 7, 3)
    first = data.load(data.arrays(table, tmp_path / "a"))
    again = data.load(data.arrays(table, tmp_path / "b"))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert first[0].dtype == np.float32
    assert set(first[1]) == {0, 1, 2}


def test_looks_find_the_line_that_takes_the_time() -> None:
    with Looks() as looks:
        time.sleep(0.1)
    found = looks.found()
    assert found["seconds"] >= 0.1
    place, share = next(iter(found["threads"]["MainThread"].items()))
    assert "test_looks_find_the_line_that_takes_the_time" in place
    assert share > 0.5


class Counter:
    """A side of the tests: the n-th run takes n units of `seconds`."""

    def __init__(self, seconds: float = 1.0, fail: str = "") -> None:
        if fail:
            raise Skip(fail)
        self._seconds, self._runs, self._target = seconds, 0, 0.0

    def aim(self, target: float) -> None:
        """Take a target."""
        self._target = target

    def run(self) -> dict[str, float]:
        """Return made-up seconds."""
        self._runs += 1
        return {"seconds": self._runs * self._seconds, "target": self._target}

    def judge(self) -> dict[str, float]:
        """Return a loss."""
        return {"loss": self._seconds}

    def short(self) -> dict[str, Any]:
        """Return seconds that nobody looks at."""
        return {"seconds": 9.0}

    def check(self) -> dict[str, Any]:
        """Return a loss."""
        return {"loss": 1.0}


def test_a_row_pairs_within_rounds_chooses_once_and_says_who_is_missing(tmp_path: Path) -> None:
    target = "tests.benchmarks.test_statistics:Counter"
    row = Row(
        "row",
        "a row",
        lambda scale: {
            "ours": Side(target, {"seconds": 1.0}, follows="peer"),
            "slow": Side(target, {"seconds": 3.0}, group="peer"),
            "fast": Side(target, {"seconds": 2.0}, group="peer"),
            "gone": Side(target, {"fail": "not here"}),
            "steady": Side(target, slow=True, warm="short"),
        },
        (
            # the fast peer ran twice before the rounds, we once; so round k compares 2 (k + 2) with (k + 1)
            Figure("ratio", lambda r: r["peer"]["seconds"] / r["ours"]["seconds"], Bar("at least", 3.0)),
            Figure("target", lambda r: r["ours"]["target"], Bar("at least", 2.0)),
            Figure("steady", lambda r: r["steady"]["seconds"]),
            Figure("missing", lambda r: r["gone"]["seconds"], Bar("at least", 1.0)),
        ),
        same_loss=((("ours", "peer"), 0.0),),
    )
    said: list[str] = []
    result = run_row(row, Scale(True, True, tmp_path), tmp_path, os.getpid(), anyway=True, say=said.append)
    ratio, aimed, steady, missing = result.outcomes
    assert ratio.values == pytest.approx([2 * (k + 2) / (k + 1) for k in (1, 2, 3)])
    assert ratio.verdict == "not reached"
    assert aimed.values == [2.0] * 3
    assert steady.values == [1.0] * 3  # a warm-up of its own, then one run for all rounds of the quick scale
    assert (missing.spread, missing.verdict) == (None, "skipped")
    assert "not here" in missing.reason
    assert any("fast of slow 6 s, fast 4 s" in line for line in said)
    assert result.sides["rounds"]["kept"] == 3
    assert not result.reached


def test_only_those_who_stay_and_run_again_decide_on_the_number_of_pairs(tmp_path: Path) -> None:
    with ExitStack() as stack:
        cast = Cast({}, tmp_path, stack, print, quick=False)
        cast.sides = {"short": Side(""), "left": Side(""), "once": Side("", once=True)}
        cast.players = dict.fromkeys(("short", "once"), cast)  # type: ignore[assignment]
        cast.took = {"short": 1.0, "left": 20.0, "once": 20.0}
        assert cast.pairs() == 7
        cast.took["short"] = 16.0
        assert cast.pairs() == 3


def test_a_run_on_busy_cores_is_played_again_and_stays_in_its_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts = iter(["", "", "", "", "busy", "", "", "", "", "busy", "", ""])  # ours, peer, both of them, three times
    monkeypatch.setattr(rounds, "disagreement", lambda load: next(verdicts))
    monkeypatch.setattr(rounds, "_LOOKS", 0)
    target = "tests.benchmarks.test_statistics:Counter"
    row = Row(
        "row",
        "a row",
        lambda scale: {"ours": Side(target), "peer": Side(target)},
        tuple(Figure(name, lambda r, name=name: r[name]["seconds"]) for name in ("ours", "peer")),
    )
    said: list[str] = []
    result = run_row(row, Scale(True, True, tmp_path), tmp_path, os.getpid(), anyway=False, say=said.append)
    ours, peer = (outcome.values for outcome in result.outcomes)
    # the first run of each is the warm-up. Round 2 begins with the peer: its first partner, ours, is played again; and
    # in round 3 both pass, but not together: the one beside whom others used most is played again
    assert len(ours) == len(peer) == 3
    assert ours[:2] == [2.0, 4.0]
    assert peer[:2] == [2.0, 3.0]
    assert sorted([ours[2], peer[2]]) in ([4.0, 6.0], [5.0, 5.0])
    assert sum(result.sides["rounds"]["played again"].values()) == 2
    assert result.sides["rounds"]["thrown away"] == 0
    assert any("played again" in line for line in said)


def test_a_row_goes_on_over_its_budget_while_nobody_disturbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = iter(["busy", "busy"])
    monkeypatch.setattr(rounds, "disagreement", lambda load: next(verdicts, ""))
    monkeypatch.setattr(rounds, "_LOOKS", 0)
    target = "tests.benchmarks.test_statistics:Counter"
    row = Row("row", "a row", lambda scale: {"ours": Side(target)}, (Figure("f", lambda r: r["ours"]["seconds"]),))
    result = run_row(row, Scale(True, True, tmp_path, 0.0), tmp_path, os.getpid(), anyway=False, say=lambda _: None)
    assert result.outcomes[0].values == [4.0, 5.0, 6.0]  # the warm-up was the first run, two more did not count


def test_the_runs_of_a_round_add_up() -> None:
    assert together([Load(1.0, 2.0, 3.0, 2), Load(4.0, 5.0, 6.0, 2)]) == Load(5.0, 7.0, 9.0, 2)
    short = Load(wall=0.1, ours=0.1, machine=0.15, cores=2)  # what a few ticks may hide
    assert disagreement(short) == ""
    assert disagreement(together([short] * 7)) == "others used 0.50 of 2 cores for 0.7 s"


def test_a_machine_that_stays_busy_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "disagreement", lambda load: "others used 1.00 of 2 cores for 1.0 s")
    monkeypatch.setattr(rounds, "_LOOKS", 0)
    target = "tests.benchmarks.test_statistics:Counter"
    row = Row("row", "a row", lambda scale: {"ours": Side(target)}, (Figure("f", lambda r: r["ours"]["seconds"]),))
    result = run_row(row, Scale(True, True, tmp_path), tmp_path, os.getpid(), anyway=False, say=lambda _: None)
    assert (result.outcomes[0].spread, result.outcomes[0].reason) == (None, "machine busy")
    thrown = 3 * rounds.RETRIES_PER_PAIR + 1
    assert result.sides["rounds"]["thrown away"] == thrown
    assert result.sides["rounds"]["played again"] == {"ours": (thrown - 1) * rounds.AGAIN}
    spent = run_row(row, Scale(True, True, tmp_path, 0.0), tmp_path, os.getpid(), anyway=False, say=lambda _: None)
    assert spent.sides["rounds"]["thrown away"] == 1
    assert spent.sides["rounds"]["played again"] == {"ours": rounds.RETRIES_OVER_BUDGET}
    assert list(spent.parts) == ["data", "start", "warm-up", "played again", "thrown away", "end"]
    assert spent.seconds == sum(spent.parts.values())


def test_the_report_shows_figures_bars_and_reasons(tmp_path: Path) -> None:
    good = Outcome("faster", "x", Bar("at least", 2.0), Spread(3.14159, 3.0, 3.5, 7), [3.0])
    bad = Outcome("slower", "ms", Bar("at most", 2.0), reason="machine busy")
    result = RowResult("row", "a row", [good, bad], ["a note"], 1.0)
    text = report.terminal([result])
    assert "3.14 x" in text
    assert "machine busy" in text
    assert "0 of 1 rows reach every bar; not: row" in text
    table = report.markdown([result], {"time": "", "processor": "", "cores": 2, "memory_gb": 1, "java": "",
                                       "versions": {}, "kernels": "numpy"})  # fmt: skip
    assert "| **row**: a row | faster | >= 2 x | 3.14 x | 3 .. 3.5 (7) | yes |" in table
    assert "|  | slower | <= 2 ms |  | machine busy | skipped |" in table
    report.picture([result], tmp_path / "figures.svg")
    assert "<svg" in (tmp_path / "figures.svg").read_text()


def test_stopped_processes_use_no_cpu_and_go_on() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            machine.signalled([busy.pid, 2**22 - 3], signal.SIGSTOP)  # the other one is not there
            begin = machine.cpu_seconds([busy.pid])
            time.sleep(0.3)
            assert machine.cpu_seconds([busy.pid]) - begin <= 0.02
            machine.signalled([busy.pid], signal.SIGCONT)
            end = time.monotonic() + 30.0
            while machine.cpu_seconds([busy.pid]) - begin < 0.1:
                assert time.monotonic() < end
                time.sleep(0.02)
        finally:
            busy.kill()
