"""What every test has: deterministic Hypothesis, folders of its own, and visible reasons for what cannot run here."""

from __future__ import annotations

import gc
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from bigopt import finishing
from bigopt.core.arrays import gpu_reason

settings.register_profile("bigopt", derandomize=True, deadline=None, print_blob=True, database=None)
settings.load_profile("bigopt")

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str | None:
    """Return the path of a Chromium, or None."""
    return next((path for name in CHROMIUM if (path := shutil.which(name))), None)


def pytest_report_header() -> list[str]:
    return [
        f"gpu: {gpu_reason() or 'found'}",
        f"java: {shutil.which('java') or 'none'}   chromium: {find_chromium() or 'none'}",
    ]


SLOW = (
    *("system", "equivalence", "diagnose", "studies", "sweep"),
    *(f"strategies/test_{name}.py" for name in ("runs", "model_parallel", "columns_solvers", "hogwild_workers")),
    *(f"strategies/test_{name}.py" for name in ("hogwild", "layers_parallel", "layers_runs", "compression", "local")),
    *("models/test_runs.py", "models/test_fused.py", "models/test_fused_runs.py", "models/test_fused_hogwild.py"),
)
"""Rooms and files of tests that train, kill, resume and compile: slow, whatever each takes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent
    for item in items:
        where = item.path.relative_to(tests)
        if where.parts[0] in SLOW or where.as_posix() in SLOW:
            item.add_marker(pytest.mark.slow)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)  # the long files first: processes then end together


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and (reason := gpu_reason()):
        pytest.skip(f"needs a GPU: {reason}")
    if item.get_closest_marker("browser") and find_chromium() is None:
        pytest.skip("needs a Chromium on the PATH (Debian: apt-get install chromium)")


draw = finishing.picture


@pytest.fixture(scope="session", autouse=True)
def no_pictures() -> Iterator[None]:
    """A learning curve takes ten times as long as a test's run: only tests that ask for `pictures` draw theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finishing, "picture", lambda run: f"no picture of {run}: a test")
        yield


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this process end with their learning curve, as they do outside of tests."""
    monkeypatch.setattr(finishing, "picture", draw)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Look for what the tests of a file opened and did not close, before another file is blamed for it."""
    if nextitem is None or nextitem.path != item.path:
        gc.collect()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A folder for ``run.dir``."""
    path = tmp_path / "runs"
    path.mkdir()
    return path


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium, for tests marked ``browser``."""
    path = find_chromium()
    if path is None:
        pytest.skip("needs a Chromium on the PATH (Debian: apt-get install chromium)")
    return path


@pytest.fixture
def spark_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a plain PySpark of this environment needs: its own Python, the loopback address, a quiet log.

    For tests that start PySpark themselves; bigopt's Spark backend is to find its way without.
    """
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("PYSPARK_DRIVER_PYTHON", sys.executable)
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    monkeypatch.setenv("SPARK_CONF_DIR", str(Path(__file__).parents[1] / "conf"))
