"""Every optimizer against torch.optim: float64, both fed the gradient at torch's w, every one of 200 steps.

What torch lacks is held against its formula. `conformance` has the references; docs/optimizers.md is what it prints.
"""

from __future__ import annotations

from pathlib import Path

import conformance
import numpy as np
import pytest

from bigopt.optim.table import OPTIMIZERS

torch = pytest.importorskip("torch")

DOCUMENT = Path(__file__).parents[2] / "docs" / "optimizers.md"
JUDGED_BY_THE_OPTIMUM = {"newton", "lbfgs"}


def test_every_optimizer_is_compared() -> None:
    assert set(conformance.TORCH) | set(conformance.DERIVED) == set(OPTIMIZERS) - JUDGED_BY_THE_OPTIMUM
    assert not any(hasattr(torch.optim, name) for name in ("Yogi", "Lion", "LARS", "LAMB", "Lars", "Lamb"))


@pytest.mark.parametrize("problem", conformance.PROBLEMS)
@pytest.mark.parametrize("schedule", ["constant", "inverse_time", "cosine"])
@pytest.mark.parametrize("name", conformance.TORCH)
def test_equals_torch(name, schedule, problem) -> None:
    keys = {"constant": {}, "inverse_time": {"decay": 0.02}, "cosine": {"period": 30.5, "t_mul": 1.5}}[schedule]
    found, last = conformance.deviations(name, problem, schedule, **keys)
    assert len(found) == 200
    assert found.max() <= 1e-12, int(found.argmax())
    assert np.isfinite(last).all()
    assert np.abs(last - conformance.PROBLEMS[problem]().start).max() > 1e-2


@pytest.mark.parametrize("problem", conformance.PROBLEMS)
@pytest.mark.parametrize("name", conformance.DERIVED)
def test_equals_its_formula(name, problem) -> None:
    found, last = conformance.deviations(name, problem)
    assert found.max() <= 1e-12, int(found.argmax())
    assert np.isfinite(last).all()
    assert np.abs(last - conformance.PROBLEMS[problem]().start).max() > 1e-2


def test_the_table_in_the_documentation_is_what_is_measured() -> None:
    hint = "python tests/support/conformance.py > docs/optimizers.md"
    assert DOCUMENT.read_text(encoding="utf-8") == conformance.document(), hint
