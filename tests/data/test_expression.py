"""The expression language against SQLite (three-valued logic), against Python, and against what must not get in."""

from __future__ import annotations

import math
import sqlite3

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigopt.core.errors import ConfError, DataError
from bigopt.data.expression import parse
from bigopt.data.expression_values import Column

NUMBERS = st.one_of(st.none(), st.integers(-4, 4).map(float), st.sampled_from([0.5, -2.25, 1e3]))
TEXTS = st.one_of(st.none(), st.sampled_from(["a", "b", "ab", "B"]))


def _column(values: list[object], text: bool = False) -> Column:
    null = np.array([v is None for v in values])
    filled = ["" if v is None else v for v in values] if text else [0.0 if v is None else v for v in values]
    return Column(np.array(filled, dtype=object if text else float), null if null.any() else None)


def _values(column: Column) -> list[object]:
    null = np.zeros(len(column.values), dtype=bool) if column.null is None else column.null
    return [None if gone else value for value, gone in zip(column.values.tolist(), null.tolist())]


def _number() -> st.SearchStrategy[tuple[str, str]]:
    """Pairs of the same number in our language and in SQL."""
    leaf = st.sampled_from([("a", "a"), ("b", "b"), ("2", "2.0"), ("(-0.5)", "(-0.5)"), ("null", "null")])

    def grow(inner: st.SearchStrategy[tuple[str, str]]) -> st.SearchStrategy[tuple[str, str]]:
        binary = st.tuples(inner, st.sampled_from("+-*/"), inner).map(
            lambda t: (f"({t[0][0]} {t[1]} {t[2][0]})", f"({t[0][1]} {t[1]} {t[2][1]})")
        )
        unary = inner.map(lambda x: (f"(-{x[0]})", f"(-{x[1]})"))
        absolute = inner.map(lambda x: (f"abs({x[0]})", f"abs({x[1]})"))
        return st.one_of(binary, unary, absolute)

    return st.recursive(leaf, grow, max_leaves=5)


def _condition() -> st.SearchStrategy[tuple[str, str]]:
    compare = st.tuples(_number(), st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), _number()).filter(
        lambda t: "null" not in (t[0][0], t[2][0])
    )
    leaf = st.one_of(
        compare.map(lambda t: (f"({t[0][0]} {t[1]} {t[2][0]})", f"({t[0][1]} {t[1]} {t[2][1]})")),
        st.sampled_from(["(c == 'a')", "(c != 'ab')", "(c < 'b')", "(c in ('a', 'B'))", "(c not in ('a', 'B'))"]).map(
            lambda t: (t, t)
        ),
        st.sampled_from(["(a is null)", "(c is null)", "(b is not null)"]).map(lambda t: (t, t)),
    )

    def grow(inner: st.SearchStrategy[tuple[str, str]]) -> st.SearchStrategy[tuple[str, str]]:
        binary = st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(
            lambda t: (f"({t[0][0]} {t[1]} {t[2][0]})", f"({t[0][1]} {t[1]} {t[2][1]})")
        )
        negated = inner.map(lambda x: (f"(not {x[0]})", f"(not {x[1]})"))
        return st.one_of(binary, negated)

    return st.recursive(leaf, grow, max_leaves=6)


@given(
    pair=_condition(),
    rows=st.lists(st.tuples(NUMBERS, NUMBERS, TEXTS), min_size=1, max_size=6),
)
@settings(max_examples=300, deadline=None)
def test_conditions_agree_with_sqlite(pair: tuple[str, str], rows: list[tuple[object, object, object]]) -> None:
    ours, sql = pair
    columns = {
        "a": _column([r[0] for r in rows]),
        "b": _column([r[1] for r in rows]),
        "c": _column([r[2] for r in rows], text=True),
    }
    expression = parse(ours, where="ingest.where")
    assert expression.kind({"a": "number", "b": "number", "c": "text"}) == "boolean"
    with sqlite3.connect(":memory:") as database:
        database.execute("create table t (a real, b real, c text)")
        database.executemany("insert into t values (?, ?, ?)", rows)
        wanted = [row[0] for row in database.execute(f"select {sql} from t order by rowid")]
    database.close()
    got = _values(expression.evaluate(columns, len(rows)))
    assert [None if v is None else int(v) for v in got] == wanted


@given(pair=_number(), rows=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=6))
@settings(max_examples=300, deadline=None)
def test_numbers_agree_with_sqlite(pair: tuple[str, str], rows: list[tuple[object, object]]) -> None:
    ours, sql = pair
    columns = {"a": _column([r[0] for r in rows]), "b": _column([r[1] for r in rows])}
    with sqlite3.connect(":memory:") as database:
        database.execute("create table t (a real, b real)")
        database.executemany("insert into t values (?, ?)", rows)
        wanted = [row[0] for row in database.execute(f"select {sql} from t order by rowid")]
    database.close()
    assert _values(parse(ours, where="x").evaluate(columns, len(rows))) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "x // 100 * 60 + x % 100",
        "-x // 7",
        "-x % 7",
        "2 ** 3 ** 2 - x",
        "min(x, 12) + max(x, 3) - abs(-x)",
        "0 < x <= 30",
        "3 if x > 20 else 4 if x > 10 else 5",
        "not x > 5 and x != 3",
        "x in [1, -2, 30] or x not in (1, 2)",
        "floor(x / 7) + ceil(x / 7)",
    ],
)
def test_integers_agree_with_python(text: str) -> None:
    x = np.array([0, 1, 7, 12, 29, 30, 31, 959, 2359])
    names = {"min": min, "max": max, "abs": abs, "floor": math.floor, "ceil": math.ceil}
    wanted = [eval(text, {"__builtins__": {}}, {**names, "x": int(v)}) for v in x]
    column = parse(text, where="x").evaluate({"x": Column(x)}, len(x))
    assert column.null is None
    assert column.values.tolist() == wanted


@pytest.mark.parametrize("name", ["sqrt", "exp", "log", "log1p", "sin", "cos", "round"])
def test_functions_agree_with_math(name: str) -> None:
    x = np.array([0.25, 1.0, 2.5, 700.0])
    function = {**vars(math), "round": round}[name]
    got = parse(f"{name}(x)", where="x").evaluate({"x": Column(x)}, 4)
    np.testing.assert_allclose(got.values, [function(v) for v in x.tolist()], rtol=1e-15)


def test_what_cannot_be_computed_is_null() -> None:
    x = Column(np.array([0.0, -1.0, 4.0]))
    for text, wanted in (
        ("1 / x", [None, -1.0, 0.25]),
        ("log(x)", [None, None, math.log(4.0)]),
        ("sqrt(x)", [0.0, None, 2.0]),
        ("x % 0", [None, None, None]),
        ("exp(1000 * x)", [1.0, 0.0, None]),
    ):
        assert _values(parse(text, where="x").evaluate({"x": x}, 3)) == wanted


def test_a_condition_that_is_null_chooses_nothing() -> None:
    a = Column(np.array([1.0, 2.0, 0.0]), np.array([False, False, True]))
    got = parse("'yes' if a > 1 else null", where="x").evaluate({"a": a}, 3)
    assert _values(got) == [None, "yes", None]


def test_columns_are_found_once_and_any_name_can_be_said() -> None:
    expression = parse("col('departure delay') + a - a * col('departure delay') + min(b, 1)", where="x")
    assert expression.columns == ("departure delay", "a", "b")
    columns = {n: Column(np.array([float(i)])) for i, n in enumerate(expression.columns, 2)}
    assert expression.evaluate(columns, 1).values.tolist() == [2 + 3 - 3 * 2 + 1]


def test_large_integers_are_compared_exactly_and_never_computed_with() -> None:
    big = Column(np.array([2**53 + 1, 2**53, 5]))
    assert parse(f"x == {2**53}", where="x").evaluate({"x": big}, 3).values.tolist() == [False, True, False]
    with pytest.raises(DataError, match=f"{2**53 + 1} is beyond 2\\^53"):
        parse("x + 1", where="x").evaluate({"x": big}, 3)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "().__class__.__bases__[0].__subclasses__()",
        "a.__class__",
        "a[0]",
        "[a for a in (1, 2)]",
        "{a: 1}",
        "lambda: a",
        "(b := a)",
        "f'{a}'",
        "eval('a')",
        "open('/etc/passwd')",
        "exec('1')",
        "col('a', 'b')",
        "col(a)",
        "abs(*a)",
        "abs(x=1)",
        "print(a)",
        "min(a)",
        "a @ b",
        "a << 2",
        "a & b",
        "~a",
        "await a",
        "yield",
        "a; b",
        "import os",
        "1j",
        "b'x'",
        "...",
        "1e999",
        "9" * 30,
        "'a' 'b' if",
        "(" * 70 + "a" + ")" * 70 + " +",
        "-" * 70 + "a",
        "a + " * 2000 + "a",
        "'\\d'",
        "",
        " ",
    ],
)
def test_what_is_not_in_the_language_is_refused(text: str) -> None:
    with pytest.raises(ConfError) as caught:
        parse(text, where="ingest.where")
    assert caught.value.where == "ingest.where"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("value", [None, 5, True, ["a"], {"a": 1}])
def test_only_text_is_an_expression(value: object) -> None:
    with pytest.raises(ConfError, match="an expression is text"):
        parse(value, where="ingest.derive.late")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arr_dleay > 15", "no column 'arr_dleay'.*did you mean 'arr_delay'"),
        ("carrier > 15", r"`carrier` \(text\) and `15` \(number\): not of one kind"),
        ("carrier + 1", "arithmetic takes numbers, `carrier` is text"),
        ("arr_delay and late", "and/or takes booleans, `arr_delay` is a number"),
        ("not arr_delay", "not takes booleans"),
        ("arr_delay == null", "never true.*is null"),
        ("late > true", "no order"),
        ("carrier in [1, 2]", "not of one kind"),
        ("1 if arr_delay else 2", "if takes booleans"),
        ("1 if late else 'x'", "not of one kind"),
        ("abs(carrier)", "abs takes numbers"),
    ],
)
def test_kinds_are_checked_before_any_row(text: str, message: str) -> None:
    with pytest.raises(ConfError, match=message):
        parse(text, where="ingest.where").kind({"arr_delay": "number", "carrier": "text", "late": "boolean"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("carrier in [UA, DL]", "quoted text.*write 'UA' in quotes"),
        ("carrier in ['UA', 1]", "number and text"),
        ("carrier in []", "takes a list"),
        ("carrier in other", "takes a list"),
        ("carrier in ['UA', null]", "is null"),
        ("a is 3", "`is` compares with null only"),
        ("a in [1] in [2]", "cannot be chained"),
        ("sqr(a)", "no function 'sqr'.*did you mean 'sqrt'"),
    ],
)
def test_messages_say_what_to_write(text: str, message: str) -> None:
    with pytest.raises(ConfError, match=message):
        parse(text, where="ingest.where")
