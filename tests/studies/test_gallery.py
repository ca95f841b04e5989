"""The gallery is as strict as a conf, the pipeline says what is wrong in one line."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bigopt.core.errors import ConfError, DivergedError
from bigopt.studies.gallery import read_gallery
from bigopt.studies.record import run_study

ROOT = Path(__file__).resolve().parents[2]
GOOD = """\
one:
  title: t
  problem: {name: xor}
  runs: {a: []}
  pictures: {curve: all}
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("title: t", "titel: t", 2, "unknown key of study 'one': 'titel' (did you mean 'title'?)"),
        ("  title: t\n", "", 1, "study 'one' has no title"),
        ("title: t", "title: 3", 2, "title is not text"),
        ("xor}", "xnor}", 3, "unknown problem 'xnor' (did you mean 'xor'?)"),
        ("xor}", "xor, rows: 4}", 3, "unknown key of problem 'xor': 'rows'"),
        ("xor}", "sine, rows: 4, seed: 1}", 3, "problem 'sine' has no noise"),
        ("xor}", "sine, rows: 4.5, seed: 1, noise: 1}", 3, "rows is not an integer"),
        ("xor}", "sine, rows: true, seed: 1, noise: 1}", 3, "rows is not an integer"),
        ("xor}", "sine, rows: 0, seed: 1, noise: 1}", 3, "rows is 0"),
        ("{name: xor}", "{}", 3, "problem has no name"),
        ("{a: []}", "{}", 4, "no runs"),
        ("{a: []}", "{a: optimizer.name=gd}", 4, "run 'a' is not a list"),
        ("{curve: all}", "{curves: all}", 5, "unknown picture 'curves' (did you mean 'curve'?)"),
        ("{curve: all}", "{curve: [b]}", 5, "unknown run 'b'"),
        ("{curve: all}", "{}", 5, "no pictures"),
        ("{curve: all}", "{curve: all}\n  stages: [0, 2]", 6, "stages are parts of a run"),
        ("one:", "one: 1\ntwo:", 1, "study 'one' is not a mapping"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, old: str, new: str, line: int, message: str) -> None:
    path = tmp_path / "gallery.yml"
    path.write_text(GOOD)
    assert list(read_gallery(path)) == ["one"]
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfError) as caught:
        read_gallery(path)
    assert str(caught.value).startswith(f"{path}:{line}: {message}")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{a: []}", "{a: [optimizer.nam=gd]}", "gallery.yml:1, a: unknown key 'optimizer.nam'"),
        ("{curve: all}", "{path: all}", "gallery.yml:1: a path needs two parameters, not 17"),
        ("{curve: all}", "{fit: all}", "gallery.yml:1: a fit needs one feature, not 2"),
    ],
)
def test_runs_and_pictures_that_do_not_go_with_the_problem(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "gallery.yml"
    path.write_text(GOOD.replace(old, new))
    keys = "model: {name: mlp, hidden: [4]}\ndata: {task: classification}\nstop: {steps: 1}\n"
    (tmp_path / "one.yml").write_text(keys)
    with pytest.raises(ConfError) as caught:
        run_study(read_gallery(path)["one"], tmp_path / "out")
    assert message in str(caught.value)


def test_what_if(tmp_path: Path) -> None:
    """Another penalty moves the minimum, another rate does not; what diverges says so."""
    study = read_gallery(ROOT / "conf" / "studies" / "gallery.yml")["example_4_1"]
    folder = tmp_path / "a folder: of #1"
    record = run_study(study, folder, ["model.l2=1", "schedule.learning_rate=0.4"])
    X, y = record.table
    w = np.linalg.solve(X.T @ X / len(X) + np.eye(2), X.T @ y / len(X))
    assert record.minimum is not None
    np.testing.assert_allclose(record.minimum, w, rtol=1e-12)
    np.testing.assert_allclose(record.traces["gradient descent"].params[-1], w, rtol=1e-9)
    with pytest.raises(DivergedError, match=r"^step \d+: gradient descent: .*\(a lower learning rate\)$"):
        run_study(study, folder, ["model.l2=0", "schedule.learning_rate=1e200"])


def test_a_reference_that_stops_too_early_is_refused(tmp_path: Path) -> None:
    study = read_gallery(ROOT / "conf" / "studies" / "gallery.yml")["example_4_1"]
    with pytest.raises(ConfError, match="the reference does not end in the minimum"):
        run_study(replace(study, reference=("stop.steps=5",)), tmp_path)


def test_the_pipeline(tmp_path: Path) -> None:
    def study(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "pipelines" / "study.py"), *args]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = study("example_4_1", "stop.steps=3", "--out", "here")
    assert done.returncode == 0, done.stderr
    made = {path.name for path in (tmp_path / "here" / "example_4_1").iterdir()}
    tables = {"rows.npz", "rows.csv", "summary.csv", "curve.csv", "path.csv", "error_surface.csv"}
    assert made == {"example_4_1.png", *tables}
    assert "gradient descent  3 " in done.stdout
    wrong = study("example_4_9")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: unknown study 'example_4_9' (did you mean 'example_4_")
    assert study().stderr.startswith("error: which study? (one of example_4_1, ")
