"""What `train` tells who watches: the parameters at the start and after every step."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import run

from bigopt import bundle


@pytest.mark.parametrize("more", [[], ["optimizer.average=true"]])
def test_every_step_is_seen_with_its_parameters(tmp_path: Path, more: list[str]) -> None:
    seen: list[tuple[int, float, Any]] = []
    result = run(
        tmp_path,
        "numbers",
        *("model.name=ridge", "optimizer.name=sgd", "batch.size=64", "stop.steps=15", "model.init=zeros"),
        *more,
        on_step=lambda step, epoch, params: seen.append((step, epoch, params)),
    )
    assert [step for step, _, _ in seen] == list(range(16))
    n = 451
    assert [epoch for _, epoch, _ in seen][:3] == [0, 64 / n, 128 / n]
    assert not seen[0][2].any()
    assert all((a != b).any() for (_, _, a), (_, _, b) in pairwise(seen))  # nobody writes into what was given
    np.testing.assert_array_equal(seen[-1][2], bundle.load(Path(result["run"])).params)
