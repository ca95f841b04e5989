"""Progress: pace and time left against figures by hand; lines, bar and silence."""

from __future__ import annotations

import io
import itertools

import pytest

from bigopt.cli_progress import Bar, Lines, Pace, Quiet, choose, clock_text, count


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_pace_by_steps_and_epochs() -> None:
    clock = Clock()
    pace = Pace(200, 4.0, clock)
    clock.now += 2.0
    pace.add({"step": 20, "epoch": 1.0, "rows": 1000})
    assert pace.fraction == 0.25  # the epochs are nearer to their end than the steps
    assert pace.rows_per_second == 500.0
    assert pace.seconds_left == pytest.approx(6.0)
    clock.now += 4.0
    pace.add({"step": 100, "epoch": 1.5, "rows": 3000})
    assert pace.fraction == 0.5
    assert pace.rows_per_second == 500.0
    assert pace.seconds_left == pytest.approx(0.5 * 4.0 / 0.25)


def test_pace_of_a_resumed_run_forgets_where_it_started() -> None:
    clock = Clock()
    pace = Pace(1000, None, clock)
    for step in (910, 920, 930):
        clock.now += 1.0
        pace.add({"step": step, "rows": step})
    assert pace.seconds_left == pytest.approx(7.0)


def test_pace_without_limits() -> None:
    clock = Clock()
    pace = Pace(None, None, clock)
    pace.add({"step": 3})
    assert (pace.fraction, pace.rows_per_second, pace.seconds_left) == (None, None, None)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (950, "950"), (999.4, "999"), (1200, "1.2k"), (34e6, "34M"), (5e9, "5G"), (7e12, "7T")],
)
def test_count(value: float, text: str) -> None:
    assert count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00:00"), (61, "0:01:01"), (3661.6, "1:01:02"), (None, "-:--:--"), (float("nan"), "-:--:--")],
)
def test_clock(seconds: float | None, text: str) -> None:
    assert clock_text(seconds) == text


def test_lines_are_few_and_the_last_is_there() -> None:
    clock, out = Clock(), io.StringIO()
    lines = Lines(out, clock)
    lines.start(100, None, "ridge")
    for step in range(1, 101):
        clock.now += 0.125
        lines.update({"step": step, "epoch": step / 50, "loss": 1.0 / step, "rows": 10 * step})
    lines.note("a note")
    lines.close()
    lines.close()
    text = out.getvalue().splitlines()
    assert text[0] == "ridge"
    assert text[1].startswith("step 1/100  epoch 0.02  loss 1  80 rows/s  ETA 0:00:12")
    assert [line.split()[1] for line in text[2:-2]] == ["41/100", "81/100"]
    assert text[-2] == "a note"
    assert text[-1].startswith("step 100/100  epoch 2.00  loss 0.01  80 rows/s  ETA 0:00:00")


def test_quiet_prints_warnings_only() -> None:
    out = io.StringIO()
    quiet = Quiet(out)
    quiet.start(1, None, "ridge")
    quiet.update({"step": 1, "loss": 2.0})
    quiet.note("picture: x.png")
    quiet.note("warning: 3 constant columns")
    quiet.close()
    assert out.getvalue() == "warning: 3 constant columns\n"


class Terminal(io.StringIO):
    """Text that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm-256color")
    out = Terminal()
    bar = choose(quiet=False, stream=out)
    assert isinstance(bar, Bar)
    bar.note("run: /tmp/[bold]r")
    bar.start(10, None, "mlp [128]")
    for step in itertools.chain(range(1, 11)):
        bar.update({"step": step, "epoch": step / 5, "loss": 0.25, "rows": 100 * step})
    bar.note("stopped")
    bar.close()
    bar.close()
    text = out.getvalue()
    for part in (
        "run: /tmp/[bold]r",
        "mlp [128]",
        "step 10/10",
        "epoch 2.00",
        "loss 0.25",
        "rows/s",
        "ETA 0:00:00",
        "stopped",
    ):
        assert part in text


def test_choice() -> None:
    assert isinstance(choose(quiet=True, stream=Terminal()), Quiet)
    assert isinstance(choose(quiet=False, stream=io.StringIO()), Lines)
