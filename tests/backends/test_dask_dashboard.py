"""The page on the Dask dashboard: its parts, and a Chromium that reads the step of a running job."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from problems import files

from bigopt.backends import dask_dashboard, dask_report

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SLOT = {"slot": 0, "worker": "tcp://10.0.0.1:4", "host": "h", "pid": 7, "state": "busy", "round": 12, "first": 3,
        "last": 5, "partitions": 8, "seconds": 0.25, "orders": 11, "rss": 3_000_000}  # fmt: skip
GONE = {"slot": 1, "worker": "", "state": "gone", "round": None, "first": None, "last": None}


class Scheduler:
    """Holds events as a scheduler does."""

    jupyter = False

    def __init__(self) -> None:
        self.events: dict[str, list[tuple[float, Any]]] = {}

    def log_event(self, topic: str, event: Any) -> None:
        self.events.setdefault(topic, []).append((1e12, event))

    def get_events(self, topic: str) -> tuple[tuple[float, Any], ...]:
        return tuple(self.events.get(topic, ()))


def test_the_page_and_its_menu_entry_are_added_once():
    from distributed.dashboard import scheduler as dashboard

    dask_dashboard.register()
    menu = dashboard.template_variables
    dask_dashboard.register()
    assert dashboard.template_variables is menu
    assert dashboard.applications["/bigopt"] is dask_dashboard.page
    pages = menu(Scheduler())["pages"]
    assert pages[:3] == ["status", "bigopt", "workers"]
    assert pages.count("bigopt") == 1


def test_the_page_shows_the_newest_run_and_offers_the_others():
    scheduler = Scheduler()
    view = dask_dashboard._View(scheduler)
    view.update()
    assert "no run yet" in view._head.text
    for run in ("first", "second <b>"):
        reporter = dask_report.Reporter(run, scheduler.log_event)
        reporter.add("", {"step": 1234, "round": 1300, "epoch": 2.5, "loss": 0.25, "rows": 5000, "seconds": 10.0})
        reporter.publish([SLOT, GONE])
        reporter.add("", {"step": 1235, "loss": 0.2, "validation": {"log_loss": 0.3, "loss": 0.31}})
        reporter.publish([SLOT, GONE])
    view.update()
    assert view._choice.options == ["second <b>", "first"]
    assert "second &lt;b&gt;" in view._head.text
    assert "<b>1,235</b>" in view._head.text
    assert "validation log loss" in view._head.text
    assert "3 … 5" in view._table.text
    assert "10.0.0.1:4, pid 7" in view._table.text
    assert "waiting for a worker" in view._table.text
    assert view._slots.data["text"] == ["round 12, partitions 3 … 5"]
    assert list(view._curve.data["step"]) == [1234, 1235]
    assert list(view._validation.data["loss"]) == [0.31]
    view._choice.value = "first"
    view.update()
    assert ">first<" in view._head.text


def test_a_label_stands_where_there_is_room():
    place = lambda first, last: dask_dashboard._range_row({**SLOT, "first": first, "last": last})[-3:]  # noqa: E731
    assert place(0, 7) == (0, "left", 8)
    assert place(0, 1) == (2, "left", 6)
    assert place(6, 7) == (6, "right", -6)


def test_a_smoothed_curve_stays_between_its_points():
    assert dask_dashboard._smooth([]) == []
    assert dask_dashboard._smooth([2.0] * 30) == [2.0] * 30
    smooth = dask_dashboard._smooth([1.0, 0.0] * 20)
    assert smooth[0] == 1.0
    assert all(0.3 < value < 0.7 for value in smooth[4:])


@pytest.fixture
def job(tmp_path) -> Iterator[tuple[str, Path]]:
    """A training run in a process of its own: the address of its page, and its folder."""
    data = files(tmp_path, "four", "zarr")
    command = [
        str(Path(sys.executable).with_name("bigopt")), "train", f"data.uri={data}", f"run.dir={tmp_path}/runs",
        "model.name=softmax", "optimizer.name=adam", "batch.size=64", "backend.name=dask", "backend.workers=2",
        "stop.epochs=1000000", "data.validation=0.2", "run.metrics_every_steps=1",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if "slots" in line:
                break
        found = re.search(r"live: (http://127\.0\.0\.1:\d+/bigopt)", said)
        assert found, said
        yield found[1], next((tmp_path / "runs").iterdir())
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        assert process.wait(60) == 143


@pytest.mark.slow
@pytest.mark.browser
def test_a_browser_reads_the_step_of_a_running_job(job, chromium, tmp_path):
    from playwright.sync_api import sync_playwright

    url, run = job

    def written() -> int:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return int(json.loads(lines[-1] if lines[-1].endswith("}") else lines[-2])["step"]) if lines else 0

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1360, "height": 720})
        page.goto(url.replace("/bigopt", "/status"))
        page.get_by_role("link", name="Bigopt").click()  # beside Status in the menu
        page.wait_for_url("**/bigopt")
        tile = page.locator(".tile[data-name=step] b")
        tile.wait_for()
        low = 0
        for _ in range(2):  # the page moves on by itself
            page.wait_for_timeout(1500)
            step = int(tile.inner_text().replace(",", ""))
            assert low < step <= written() + 100
            low = step
        assert page.locator(".pill").inner_text() == "running"
        text = page.locator("table").inner_text()
        assert re.search(r"127\.0\.0\.1:\d+, pid \d+", text)
        assert {row.split()[0] for row in text.splitlines()[1:] if row} >= {"0", "1"}
        assert page.locator("canvas, .bk-Figure").count() > 0
        page.screenshot(path=str(tmp_path / "dashboard.png"))
        browser.close()
    assert written() > 0


@pytest.mark.slow
def test_the_page_is_served_on_loopback_beside_the_others(job):
    url, _ = job
    with urllib.request.urlopen(url, timeout=20) as answer:
        assert answer.status == 200
        assert "bigopt" in answer.read().decode()
