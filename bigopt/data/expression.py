"""A small language over columns: how a conf derives a target or leaves rows out.

``late: arr_delay > 15`` and ``where: dest in ['LAX', 'SFO'] and distance is not null`` are expressions over whole
columns. The text is parsed with Python's grammar (`ast`), every node is held against a closed list, and what is left is
evaluated with NumPy, a block of rows at a time. Nothing is compiled or executed: no attribute, subscript, lambda,
comprehension or call of anything but the functions of `FUNCTIONS` gets past `parse`.

=============  ==========================================================================================
numbers        ``+ - * / // % **``, unary ``-``; computed in float64
comparisons    ``< <= > >= == !=`` (also chained), ``x in ['a', 'b']``, ``x not in [1, 2]``
logic          ``and or not``, ``a if condition else b``, ``true``, ``false``
null           ``x is null``, ``x is not null``, ``null`` as a value
functions      abs floor ceil round sqrt exp log log1p sin cos min max, ``col('any name')``
=============  ==========================================================================================

Null is a third value, as in SQL: arithmetic and comparisons with null are null, ``null or true`` is true, ``null and
false`` is false, and a row whose ``where`` is null is left out. A number that cannot be computed (1/0, log(-1)) is
null.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from bigopt.core.errors import ConfError
from bigopt.core.names import nearest
from bigopt.data.expression_values import (
    ARITHMETIC,
    COMPARE,
    EXACT,
    FUNCTIONS,
    WORDS,
    Column,
    Kind,
    column_name,
    evaluate,
    is_null,
    literal,
)

_LONGEST: Final = 4000
_DEEPEST: Final = 60


@dataclass(frozen=True)
class Expression:
    """A parsed expression; make one with `parse`.

    Parameters
    ----------
    text : str
        As it stands in the conf.
    where : str
        Conf path for messages.
    tree : ast.expr
        The checked syntax tree.
    """

    text: str
    where: str
    tree: ast.expr

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns it uses, in order of appearance."""
        found: dict[str, None] = {}
        _names(self.tree, found)
        return tuple(found)

    def kind(self, kinds: Mapping[str, Kind]) -> Kind:
        """Return the kind of the result, given the kinds of the columns.

        Raises
        ------
        ConfError
            For an unknown column, or an operation on the wrong kind.
        """
        return _Checker(self, kinds).kind(self.tree)

    def evaluate(self, columns: Mapping[str, Column], rows: int) -> Column:
        """Return the values for a block of rows.

        Parameters
        ----------
        columns : mapping of name to Column
            Whose kinds `kind` has accepted.
        rows : int

        Returns
        -------
        Column
            float64, bool or object (text).

        Raises
        ------
        DataError
            For an integer that float64 cannot hold exactly.
        """
        with np.errstate(all="ignore"):
            return evaluate(self.tree, columns, rows)


def parse(text: object, *, where: str) -> Expression:
    """Parse an expression.

    Parameters
    ----------
    text : object
        What stands in the conf; only text is taken.
    where : str
        Conf path, for messages ("ingest.derive.late").

    Raises
    ------
    ConfError
        For anything that is not in the language.
    """
    if not isinstance(text, str) or not text.strip():
        raise ConfError(f"an expression is text, not {text!r}", where=where, hint="write for example: arr_delay > 15")
    if len(text) > _LONGEST:
        raise ConfError(f"an expression of {len(text)} characters; at most {_LONGEST}", where=where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tree = ast.parse(" ".join(text.split("\n")).strip(), mode="eval").body
    except SyntaxError as error:
        raise ConfError(f"cannot read '{text}': {error.msg}", where=where) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ConfError(f"cannot read '{text[:60]}': {type(error).__name__}: {error}", where=where) from None
    _check(tree, text, where, 0)
    return Expression(text, where, tree)


def _refuse(text: str, where: str, what: str, hint: str = "") -> ConfError:
    return ConfError(f"in '{text}': {what}", where=where, hint=hint)


def _check(node: ast.expr, text: str, where: str, depth: int) -> None:
    """Hold one node and what is below it against the closed list."""

    def below(*nodes: ast.expr) -> None:
        for child in nodes:
            _check(child, text, where, depth + 1)

    if depth > _DEEPEST:
        raise _refuse(text[:60], where, f"nested deeper than {_DEEPEST}")
    match node:
        case ast.Name():
            return
        case ast.Constant(value=value):
            if isinstance(value, int) and not isinstance(value, bool) and abs(value) > EXACT:
                raise _refuse(text, where, f"the number {value} is beyond 2^53")
            if not (value is None or isinstance(value, (bool, int, float, str))):
                raise _refuse(text, where, f"{value!r} is neither a number, text, true, false nor null")
            if isinstance(value, float) and not np.isfinite(value):
                raise _refuse(text, where, "a number that is not finite")
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            below(left, right)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() | ast.Not(), operand=operand):
            below(operand)
        case ast.BoolOp(values=values):
            below(*values)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            below(test, body, orelse)
        case ast.Compare(left=left, ops=ops, comparators=others):
            below(left)
            for comparison, other in zip(ops, others):
                if isinstance(comparison, (ast.In, ast.NotIn)):
                    _check_list(other, text, where)
                elif isinstance(comparison, (ast.Is, ast.IsNot)):
                    if not is_null(other):
                        raise _refuse(text, where, "`is` compares with null only", "use == for values")
                else:
                    below(other)
            if len(ops) > 1 and not all(type(item) in COMPARE for item in ops):
                raise _refuse(text, where, "`in` and `is` cannot be chained", "use brackets and `and`")
        case ast.Call(func=ast.Name(id="col"), args=[ast.Constant(value=str())], keywords=[]):
            return
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            if len(args) != FUNCTIONS[name][0]:
                raise _refuse(text, where, f"{name} takes {FUNCTIONS[name][0]} argument(s), not {len(args)}")
            below(*args)
        case ast.Call(func=ast.Name(id=name)):
            known = nearest(name, [*FUNCTIONS, "col"])
            raise _refuse(text, where, f"no function '{name}' (or not with these arguments)", known)
        case _:
            kinds = "numbers, comparisons, and/or/not, in [...]"
            raise _refuse(text, where, f"{type(node).__name__} is not part of the language", kinds)


def _check_list(node: ast.expr, text: str, where: str) -> None:
    if not isinstance(node, (ast.List, ast.Tuple)) or not node.elts:
        raise _refuse(text, where, "`in` takes a list of values", "write for example: carrier in ['UA', 'DL']")
    values = []
    for item in node.elts:
        if isinstance(item, ast.Name) and item.id not in WORDS:
            raise _refuse(text, where, "a list holds numbers or quoted text", f"write '{item.id}' in quotes")
        value = literal(item)
        if value is None:
            raise _refuse(text, where, "a list holds numbers or quoted text", "null is tested by `is null`")
        values.append("text" if isinstance(value, str) else "boolean" if isinstance(value, bool) else "number")
    if len(set(values)) > 1:
        raise _refuse(text, where, f"a list of {' and '.join(sorted(set(values)))}", "all values of one kind")


def _names(node: ast.AST, found: dict[str, None]) -> None:
    name = column_name(node)
    if name is not None:
        found[name] = None
        return
    for field, child in ast.iter_fields(node):
        if field == "func":
            continue
        for item in child if isinstance(child, list) else [child]:
            if isinstance(item, ast.AST):
                _names(item, found)


@dataclass(frozen=True)
class _Checker:
    """Finds the kind of every node, so that evaluation needs no checks."""

    expression: Expression
    kinds: Mapping[str, Kind]

    def refuse(self, what: str, hint: str = "") -> ConfError:
        return _refuse(self.expression.text, self.expression.where, what, hint)

    def need(self, node: ast.expr, wanted: Kind, use: str) -> Kind:
        kind = self.kind(node)
        if kind not in (wanted, "null"):
            raise self.refuse(f"{use} takes {wanted}s, `{ast.unparse(node)}` is {_a(kind)}")
        return wanted

    def alike(self, nodes: list[ast.expr], use: str) -> Kind:
        kinds = [self.kind(node) for node in nodes]
        known = sorted({kind for kind in kinds if kind != "null"})
        if len(known) > 1:
            sides = " and ".join(f"`{ast.unparse(n)}` ({k})" for n, k in zip(nodes, kinds))
            raise self.refuse(f"{use} {sides}: not of one kind")
        return known[0] if known else "null"

    def kind(self, node: ast.expr) -> Kind:
        name = column_name(node)
        if name is not None:
            if name not in self.kinds:
                raise self.refuse(f"there is no column '{name}'", nearest(name, self.kinds) if self.kinds else "")
            return self.kinds[name]
        match node:
            case ast.Constant() | ast.Name():
                value = literal(node)
                if value is None:
                    return "null"
                return "text" if isinstance(value, str) else "boolean" if isinstance(value, bool) else "number"
            case ast.BinOp(left=left, right=right):
                self.need(left, "number", "arithmetic")
                return self.need(right, "number", "arithmetic")
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return self.need(operand, "boolean", "not")
            case ast.UnaryOp(operand=operand):
                return self.need(operand, "number", "arithmetic")
            case ast.BoolOp(values=values):
                for value in values:
                    self.need(value, "boolean", "and/or")
                return "boolean"
            case ast.IfExp(test=test, body=body, orelse=orelse):
                self.need(test, "boolean", "if")
                return self.alike([body, orelse], "if/else between")
            case ast.Compare(left=left, ops=ops, comparators=others):
                return self.compare(left, ops, others)
            case ast.Call(func=ast.Name(id=name), args=args):
                for arg in args:
                    self.need(arg, "number", name)
                return "number"
        raise AssertionError(ast.dump(node))

    def compare(self, left: ast.expr, ops: list[ast.cmpop], others: list[ast.expr]) -> Kind:
        for op, other in zip(ops, others):
            if isinstance(op, (ast.Is, ast.IsNot)):
                self.kind(left)
            elif isinstance(op, (ast.In, ast.NotIn)):
                assert isinstance(other, (ast.List, ast.Tuple))
                self.alike([left, other.elts[0]], "comparing")
            else:
                if is_null(left) or is_null(other):
                    raise self.refuse("a comparison with null is never true", "use `is null` or `is not null`")
                if self.alike([left, other], "comparing") == "boolean" and not isinstance(op, (ast.Eq, ast.NotEq)):
                    raise self.refuse("true and false have no order")
            left = other
        return "boolean"


def _a(kind: Kind) -> str:
    return "null" if kind == "null" else "text" if kind == "text" else f"a {kind}"
