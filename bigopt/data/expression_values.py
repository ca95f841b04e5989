"""Columns with nulls, and the values of an expression over them.

A `Column` is a NumPy array and a mask of nulls. `evaluate` walks a checked syntax tree (see `bigopt.data.expression`)
and computes with whole columns: numbers in float64, comparisons and logic with null as the third value.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core.errors import DataError

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Kind = Literal["number", "boolean", "text", "null"]

EXACT: Final = 1 << 53
"""Integers beyond this are not exact as float64."""

ARITHMETIC: Final[dict[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.FloorDiv: np.floor_divide,
    ast.Mod: np.mod,
    ast.Pow: np.power,
}
COMPARE: Final[dict[type[ast.cmpop], Callable[[Any, Any], Any]]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}

FUNCTIONS: Final[dict[str, tuple[int, Callable[..., Any]]]] = {
    "abs": (1, np.abs),
    "floor": (1, np.floor),
    "ceil": (1, np.ceil),
    "round": (1, np.rint),
    "sqrt": (1, np.sqrt),
    "exp": (1, np.exp),
    "log": (1, np.log),
    "log1p": (1, np.log1p),
    "sin": (1, np.sin),
    "cos": (1, np.cos),
    "min": (2, np.minimum),
    "max": (2, np.maximum),
}
"""Name to (number of arguments, function of float64 arrays)."""


WORDS: Final[dict[str, bool | None]] = {"null": None, "true": True, "false": False}
"""Names that are values."""


class Column(NamedTuple):
    """The values of one column in one block of rows.

    Parameters
    ----------
    values : ndarray, shape (k,)
        int64, uint64, float64, bool, or object holding `str`. What stands at a null is arbitrary (0, "").
    null : ndarray of bool, shape (k,), or None
        Which rows are null; None for none.
    """

    values: Array
    null: Mask | None = None

    @property
    def kind(self) -> Kind:
        """``number``, ``boolean`` or ``text``."""
        return "text" if self.values.dtype.kind == "O" else "boolean" if self.values.dtype.kind == "b" else "number"

    def take(self, keep: Mask) -> Column:
        """Return the rows of a mask."""
        null = None if self.null is None else self.null[keep]
        return Column(self.values[keep], null if null is not None and null.any() else None)

    def numbers(self) -> Array:
        """Return the values as float64.

        Raises
        ------
        DataError
            For integers that float64 cannot hold exactly.
        """
        if self.values.dtype.kind in "iu":
            wrong = self.values > EXACT
            if self.values.dtype.kind == "i":
                wrong |= self.values < -EXACT
            if wrong.any():
                raise DataError(
                    f"{int(self.values[wrong][0])} is beyond 2^53, where float64 no longer tells integers apart"
                )
        return self.values.astype(np.float64, copy=False)


def is_null(node: ast.expr) -> bool:
    """Whether a node is the word null."""
    return (isinstance(node, ast.Constant) and node.value is None) or (isinstance(node, ast.Name) and node.id == "null")


def literal(node: ast.expr) -> Any:
    """Return the value of a constant, or None where the node is no constant (or null)."""
    match node:
        case ast.Constant(value=bool() | int() | float() | str()):
            return node.value
        case ast.Name(id=name):
            return WORDS.get(name)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return None if isinstance(value, bool) else -value
    return None


def column_name(node: ast.AST) -> str | None:
    """Return the name of the column a node stands for, None for any other node."""
    match node:
        case ast.Name(id=name) if name not in WORDS:
            return name
        case ast.Call(func=ast.Name(id="col"), args=[ast.Constant(value=str() as name)]):
            return name
    return None


def _either(left: Mask | None, right: Mask | None) -> Mask | None:
    if left is None or right is None:
        return left if right is None else right
    return left | right


def _finite(values: Array, null: Mask | None) -> Column:
    """Return computed numbers, what could not be computed as null."""
    wrong = ~np.isfinite(values)
    if not wrong.any():
        return Column(values, null)
    return Column(np.where(wrong, 0.0, values), _either(null, wrong))


def _constant(value: Any, rows: int) -> Column:
    if value is None:
        return Column(np.zeros(rows), np.ones(rows, dtype=bool))
    if isinstance(value, str):
        return Column(np.full(rows, value, dtype=object))
    return Column(np.full(rows, value))


def evaluate(node: ast.expr, columns: Mapping[str, Column], rows: int) -> Column:
    """Return the values of a checked node (see `bigopt.data.expression.Expression.evaluate`)."""

    def value(child: ast.expr) -> Column:
        return evaluate(child, columns, rows)

    name = column_name(node)
    if name is not None:
        return columns[name]
    match node:
        case ast.BinOp(left=left, op=op, right=right):
            a, b = value(left), value(right)
            return _finite(ARITHMETIC[type(op)](a.numbers(), b.numbers()), _either(a.null, b.null))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            a = value(operand)
            return Column(~a.values.astype(bool, copy=False), a.null)
        case ast.UnaryOp(op=ast.USub(), operand=operand) if literal(node) is None:
            a = value(operand)
            return Column(-a.numbers(), a.null)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return value(operand)
        case ast.BoolOp(op=op, values=values):
            return _logic(isinstance(op, ast.And), [value(v) for v in values])
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return _choose(value(test), value(body), value(orelse))
        case ast.Compare(left=left, ops=ops, comparators=others):
            parts = [_compare(a, op, b, columns, rows) for a, op, b in zip([left, *others], ops, others)]
            return parts[0] if len(parts) == 1 else _logic(True, parts)
        case ast.Call(func=ast.Name(id=function), args=args):
            given = [value(arg) for arg in args]
            null = given[0].null if len(given) == 1 else _either(given[0].null, given[1].null)
            return _finite(FUNCTIONS[function][1](*(g.numbers() for g in given)), null)
    return _constant(literal(node), rows)


def _logic(conjunction: bool, parts: list[Column]) -> Column:
    """Three-valued and (or): false (true) decides, else null spreads."""
    decided = np.zeros(len(parts[0].values), dtype=bool)
    null = np.zeros(len(decided), dtype=bool)
    for values, nulls in parts:
        holds = values.astype(bool, copy=False) != conjunction
        decided |= holds if nulls is None else holds & ~nulls
        if nulls is not None:
            null |= nulls
    null &= ~decided
    return Column(~decided if conjunction else decided, null if null.any() else None)


def _choose(test: Column, yes: Column, no: Column) -> Column:
    pick = test.values.astype(bool, copy=False)
    null: Mask | None = None
    if yes.null is not None or no.null is not None:
        blank = np.zeros(len(pick), dtype=bool)
        null = np.where(pick, blank if yes.null is None else yes.null, blank if no.null is None else no.null)
    null = _either(null, test.null)
    a, b = yes.values, no.values
    if "O" in (a.dtype.kind, b.dtype.kind):
        texts: Array = np.where(pick, a.astype(object), b.astype(object))
        if null is not None:
            texts[null] = ""
        return Column(texts, null)
    if a.dtype != b.dtype:
        a, b = a.astype(np.float64), b.astype(np.float64)
    return Column(np.where(pick, a, b), null if null is not None and null.any() else None)


def _compare(left: ast.expr, op: ast.cmpop, right: ast.expr, columns: Mapping[str, Column], rows: int) -> Column:
    a = evaluate(left, columns, rows)
    if isinstance(op, (ast.Is, ast.IsNot)):
        null = np.zeros(rows, dtype=bool) if a.null is None else a.null
        return Column(null.copy() if isinstance(op, ast.Is) else ~null)
    if isinstance(op, (ast.In, ast.NotIn)):
        assert isinstance(right, (ast.List, ast.Tuple))
        wanted = [literal(item) for item in right.elts]
        if a.values.dtype.kind == "O":
            chosen = set(wanted)
            inside = np.fromiter((v in chosen for v in a.values), dtype=bool, count=rows)
        else:
            inside = np.zeros(rows, dtype=bool)
            for item in wanted:
                inside |= a.values == item
        return Column(~inside if isinstance(op, ast.NotIn) else inside, a.null)
    b = evaluate(right, columns, rows)
    x, y = a.values, b.values
    if x.dtype != y.dtype and a.kind == b.kind == "number":
        x, y = a.numbers(), b.numbers()
    both = _either(a.null, b.null)
    if both is not None and "O" in (x.dtype.kind, y.dtype.kind):
        x, y = np.where(both, "", x.astype(object)), np.where(both, "", y.astype(object))
    return Column(np.asarray(COMPARE[type(op)](x, y), dtype=bool), both)
