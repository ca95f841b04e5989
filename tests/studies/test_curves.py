"""The learning curve that a run ends with: its panels hold what the run recorded, whatever the strategy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from problems import MODELS, run

MINI = ["optimizer.name=sgd", "batch.size=64", "stop.epochs=2", "data.validation=0.2", "backend.workers=2"]
SYNCHRONOUS = ("0: a synchronous strategy", "all workers have a part in each", "nothing: workers in this process")
SAID = {
    "sync": SYNCHRONOUS,
    "async": SYNCHRONOUS[2:],
}
"""What the panels say in the place of a picture."""


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("strategy", SAID)
def test_a_run_ends_with_its_learning_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
    figure = pytest.importorskip("matplotlib.figure")
    drawn, save = [], figure.Figure.savefig
    monkeypatch.setattr(
        figure.Figure, "savefig", lambda self, *args, **how: (drawn.append(self), save(self, *args, **how))
    )
    kind, model = MODELS["ridge"]
    result = run(tmp_path, kind, *model, *MINI, f"strategy.name={strategy}")
    path = Path(result["run"]) / "learning_curve.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert f"picture: {path}" in (path.parent / "log.txt").read_text()
    kept = json.loads((path.parent / "result.json").read_text())
    (picture,) = drawn
    panels = {axis.get_title(loc="left"): axis for axis in picture.axes}
    assert list(panels)[:4] == ["loss", "gradient norm", "validation", "sent (MB)"]
    batch, checks = panels["loss"].lines
    assert batch.get_xdata()[-1] == pytest.approx(result["epochs"])
    assert checks.get_ydata()[-1] == pytest.approx(kept["validation_loss"])
    assert bool(panels["updates"].patches) == (strategy == "async")
    assert bool(panels["staleness"].patches) == (strategy == "async")
    said = {text.get_text() for axis in picture.axes for text in axis.texts}
    assert set(SAID[strategy]) <= said
    assert said.isdisjoint(set(SYNCHRONOUS) - set(SAID[strategy]))
