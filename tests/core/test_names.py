"""Names and the hint for a typo."""

from __future__ import annotations

import pytest

from bigopt.core.errors import ConfError
from bigopt.core.names import lookup, nearest

TABLE = {"sgd": 1, "adam": 2, "adamw": 3, "momentum": 4}


@pytest.mark.parametrize(
    ("typo", "hint"),
    [
        ("adma", "did you mean 'adam'?"),
        ("momentun", "did you mean 'momentum'?"),
        ("newton-raphson", "one of adam, adamw, momentum, sgd"),
        ("", "one of adam, adamw, momentum, sgd"),
    ],
)
def test_the_nearest_name_or_all(typo: str, hint: str) -> None:
    assert nearest(typo, TABLE) == hint
    with pytest.raises(ConfError) as caught:
        lookup(TABLE, typo, family="optimizer", where="optimizer.name")
    assert str(caught.value) == f"optimizer.name: unknown optimizer '{typo}' ({hint})"
    assert caught.value.exit_code == 2


def test_a_known_name_is_found() -> None:
    assert [lookup(TABLE, name, family="optimizer") for name in TABLE] == [1, 2, 3, 4]
