"""The verb `diagnose`: one object for programs, tables and reasons for people."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bigopt.cli import bigopt
from bigopt.diagnose.theory import FORMULAS


@pytest.fixture
def npz(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 3))
    np.savez(tmp_path / "d.npz", X=X, y=X @ [1.0, 2.0, 3.0])
    return str(tmp_path / "d.npz")


def test_for_programs(npz: str) -> None:
    result = CliRunner().invoke(bigopt, ["diagnose", "--json", f"data.uri={npz}", "model.name=linear"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    with np.load(npz) as arrays:
        X = arrays["X"]
    H = 2 * np.cov(X.T, bias=True) / np.outer(X.std(0), X.std(0))
    H = np.block([[H, np.zeros((3, 1))], [np.zeros((1, 3)), np.full((1, 1), 2.0)]])  # centred, with an intercept
    assert found["lambda_max"] == pytest.approx(np.linalg.eigvalsh(H)[-1], rel=1e-10)
    assert found["mean_square_x"] == pytest.approx(3.0, rel=1e-12)
    for name in FORMULAS:
        assert name in found or all(name in step for step in found["stable_steps"][:-1]), name
    assert found["recommendation"]["reasons"]


def test_for_people(npz: str) -> None:
    result = CliRunner().invoke(bigopt, ["diagnose", f"data.uri={npz}", "model.name=mlp", "model.hidden=[3]"])
    assert result.exit_code == 0
    for text in (
        "b_stable",
        "b_M",
        "b_noise",
        "lambda_max(Sigma)",
        "full: 2/lambda_max(H)",
        "recommended",
        "because: ",
    ):
        assert text in result.stdout
    reasons = result.stdout[result.stdout.index("  because: ") :].splitlines()
    assert max(map(len, reasons)) <= 79
    assert "learning rate  auto" in result.stdout
