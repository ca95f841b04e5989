"""The fitted recipe: how a raw row becomes features, target and weight, as a plain value.

Ingest fits a recipe once (`bigopt.data.recipe_fit`): which raw columns of which kind are read, what is joined and
derived, which rows are kept, the categories of every encoded column, what replaces a null. It is written into the
dataset's manifest and travels in the model, so that evaluate and predict can take raw data of the same kind later:

    raw columns -> join -> derive -> (where) -> nulls -> encode -> X, y, weight

Applied for **evaluate** the whole recipe runs. Applied for **predict** there need be no target, `where` and derivations
that only the target uses are left out, and one row comes out for every row that goes in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

from bigopt.core import codec
from bigopt.core.codec import wire
from bigopt.core.errors import DataError
from bigopt.data.columns import Names, Run, ambiguous
from bigopt.data.expression import parse
from bigopt.data.rawread import KINDS, RawKind
from bigopt.data.source import NUMERIC, common_dtype
from bigopt.data.words import Words

Mode = Literal["ingest", "evaluate", "predict"]
Encoding = Literal["number", "onehot", "top", "ordinal", "words"]
NullRule = Literal["error", "drop", "fill"]
Value = str | int | float | bool

VERSION: Final = 1
ENCODINGS: Final = ("number", "onehot", "top", "ordinal", "words")
OTHER: Final = "(other)"
"""Name of the column of all categories outside the most frequent ones."""

_FILLS: Final[dict[RawKind, tuple[type, ...]]] = {
    "integer": (int, float),
    "number": (int, float),
    "boolean": (bool,),
    "text": (str,),
}


def _must(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(f"recipe: {what}")


def _texts(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(item, str) for item in value)


@wire
@dataclass(frozen=True)
class RawColumn:
    """A column that is read, and the kind it is read as.

    Parameters
    ----------
    name : str
    kind : str
        ``integer``, ``number``, ``boolean`` or ``text``.
    """

    name: str
    kind: RawKind

    def __post_init__(self) -> None:
        _must(isinstance(self.name, str) and self.kind in KINDS, f"raw column {self.name!r} of kind {self.kind!r}")


@wire
@dataclass(frozen=True)
class Join:
    """A small table whose columns are looked up by key.

    Parameters
    ----------
    source : str
        Raw file or URL, read again whenever the recipe is applied.
    on : tuple of RawColumn
        Columns of both tables that must be equal.
    columns : tuple of RawColumn
        What is taken over; null where no row has the key.
    """

    source: str
    on: tuple[RawColumn, ...]
    columns: tuple[RawColumn, ...]

    def __post_init__(self) -> None:
        _must(isinstance(self.source, str), f"join source {self.source!r}")
        for columns in (self.on, self.columns):
            _must(isinstance(columns, tuple) and all(isinstance(c, RawColumn) for c in columns), "join columns")


@wire
@dataclass(frozen=True)
class Feature:
    """One source or derived column and the features it becomes.

    Parameters
    ----------
    column : str
    kind : str
        Of the column, as `RawColumn.kind`.
    encode : str
        ``number``: itself. ``onehot``: a 0/1 column a category. ``top``: the same, and one for all others.
        ``ordinal``: the category's number, from 0. ``words``: the hashed words of a text; it makes X sparse.
    dtype : str
        NumPy dtype name of the feature.
    categories : tuple
        In order; empty for ``number`` and ``words``.
    null : str
        ``error``, ``drop`` or ``fill``.
    fill : str, int, float, bool or None
        What replaces a null.
    words : Words or None
        For ``words``.
    """

    column: str
    kind: RawKind
    encode: Encoding
    dtype: str
    categories: tuple[Value, ...] = ()
    null: NullRule = "error"
    fill: Value | None = None
    words: Words | None = None

    def __post_init__(self) -> None:
        _must(isinstance(self.column, str), f"feature {self.column!r}")
        where = f"feature {self.column}"
        _must(self.kind in KINDS and self.encode in ENCODINGS, f"{where}: {self.encode!r}")
        _must(self.dtype in NUMERIC, f"{where}: dtype {self.dtype!r}")
        _must(self.null in ("error", "drop", "fill"), f"{where}: null {self.null!r}")
        wanted = {"integer": int, "number": int, "boolean": bool, "text": str}[self.kind]
        _must(isinstance(self.categories, tuple), f"{where}: categories")
        _must(all(type(c) is wanted for c in self.categories), f"{where}: categories that are not {self.kind}")
        _must(len(set(self.categories)) == len(self.categories), f"{where}: a category stands twice")
        _must(
            (self.encode in ("number", "words")) == (not self.categories), f"{where}: {len(self.categories)} categories"
        )
        _must(self.kind != "text" or self.encode != "number", f"{where}: text")
        _must((self.encode == "words") == isinstance(self.words, Words), f"{where}: words {self.words!r}")
        _must(
            self.encode != "words" or (self.kind, self.dtype) == ("text", "float32"), f"{where}: words of {self.kind}"
        )
        _must((self.null == "fill") == (self.fill is not None), f"{where}: fill {self.fill!r}")
        _must(self.fill is None or type(self.fill) in _FILLS[self.kind], f"{where}: fill {self.fill!r}")

    @property
    def names(self) -> tuple[str | Run, ...]:
        """Names of the features it becomes."""
        if self.words is not None:
            return (Run(f"{self.column}#", self.words.bins),)
        if self.encode in ("number", "ordinal"):
            return (self.column,)
        last = (f"{self.column}={OTHER}",) if self.encode == "top" else ()
        return (*(f"{self.column}={shown(c)}" for c in self.categories), *last)

    @property
    def width(self) -> int:
        """Number of features it becomes."""
        return self.words.bins if self.words is not None else len(self.names)


@wire
@dataclass(frozen=True)
class Target:
    """What is predicted.

    Parameters
    ----------
    columns : tuple of str
    kinds : tuple of str
        As `RawColumn.kind`.
    dtype : str
        NumPy dtype name of y, or ``text``.
    drop : bool
        Rows without it are left out, instead of refused.
    classes : tuple or None
        Declared labels.
    """

    columns: tuple[str, ...]
    kinds: tuple[RawKind, ...]
    dtype: str
    drop: bool = False
    classes: tuple[Value, ...] | None = None

    def __post_init__(self) -> None:
        _must(_texts(self.columns) and len(self.columns) > 0, f"target {self.columns!r}")
        _must(isinstance(self.kinds, tuple) and len(self.kinds) == len(self.columns), "kinds of the target")
        _must(all(kind in KINDS for kind in self.kinds), f"kinds of the target {self.kinds!r}")
        _must(self.dtype == "text" or self.dtype in NUMERIC, f"target dtype {self.dtype!r}")
        _must(isinstance(self.drop, bool), f"target drop {self.drop!r}")
        labels = self.classes or ()
        _must(isinstance(labels, tuple) and all(isinstance(c, (str, int, float, bool)) for c in labels), "classes")


@wire
@dataclass(frozen=True)
class Recipe:
    """From raw columns to features, target and weight.

    Parameters
    ----------
    raw : tuple of RawColumn
        What is read of the source, without what is joined.
    joins : tuple of Join
    derive : tuple of (name, expression)
        In order; a later one may use an earlier one.
    where : str or None
        Expression for the rows that are kept.
    features : tuple of Feature
    target : Target or None
    weight : str or None
        Column of sample weights.
    weight_drop : bool
        Rows without a weight are left out, instead of refused.
    version : int
    """

    raw: tuple[RawColumn, ...]
    joins: tuple[Join, ...]
    derive: tuple[tuple[str, str], ...]
    where: str | None
    features: tuple[Feature, ...]
    target: Target | None = None
    weight: str | None = None
    weight_drop: bool = False
    version: int = VERSION

    def __post_init__(self) -> None:
        for items, kind in ((self.raw, RawColumn), (self.joins, Join), (self.features, Feature)):
            _must(isinstance(items, tuple) and all(isinstance(i, kind) for i in items), f"{kind.__name__} expected")
        _must(isinstance(self.derive, tuple) and all(_texts(d) and len(d) == 2 for d in self.derive), "derive")
        _must(self.where is None or isinstance(self.where, str), f"where {self.where!r}")
        _must(self.target is None or isinstance(self.target, Target), "target")
        _must(self.weight is None or isinstance(self.weight, str), f"weight {self.weight!r}")
        _must(self.version == VERSION, f"version {self.version!r}, this bigopt reads {VERSION}")
        _must(len(self.features) > 0, "no features")
        _must(ambiguous(self._names) is None, "two features of one name")

    @cached_property
    def _names(self) -> tuple[str | Run, ...]:
        return tuple(name for feature in self.features for name in feature.names)

    @cached_property
    def columns(self) -> Sequence[str]:
        """Names of the features, in the order of X's columns."""
        return Names(self._names) if self.sparse else tuple(name for name in self._names if isinstance(name, str))

    @property
    def sparse(self) -> bool:
        """Whether X is CSR: where any feature is made of words."""
        return any(feature.words is not None for feature in self.features)

    @cached_property
    def dtype(self) -> str:
        """NumPy dtype name of X: what all features fit in."""
        return common_dtype([feature.dtype for feature in self.features])

    @cached_property
    def kinds(self) -> dict[str, str]:
        """Kind of each feature and target for the manifest: number, boolean, text or category."""
        kinds: dict[str, str] = {}
        for feature in self.features:
            plain = "boolean" if feature.kind == "boolean" else "number"
            names = (name for name in feature.names if isinstance(name, str))
            kinds.update(dict.fromkeys(names, plain if feature.encode == "number" else "category"))
        if self.target is not None:
            for name, kind in zip(self.target.columns, self.target.kinds):
                declared = self.target.classes is not None
                kinds[name] = "category" if declared else "number" if kind == "integer" else kind
        return kinds

    def wanted(self, mode: Mode) -> tuple[str, ...]:
        """Columns that features (and for ingest and evaluate target, weight and `where`) are made of."""
        names = dict.fromkeys(feature.column for feature in self.features)
        if mode != "predict":
            names.update(dict.fromkeys(self.target.columns if self.target else ()))
            names.update(dict.fromkeys([self.weight] if self.weight else ()))
            names.update(dict.fromkeys(parse(self.where, where="recipe").columns if self.where else ()))
        return tuple(names)

    def derivations(self, mode: Mode) -> tuple[tuple[str, str], ...]:
        """The derivations that `wanted` columns rest on, in order."""
        needed, used = set(self.wanted(mode)), []
        for name, text in reversed(self.derive):
            if name in needed:
                used.append((name, text))
                needed.update(parse(text, where="recipe").columns)
        return tuple(reversed(used))

    def joined(self, mode: Mode) -> tuple[Join, ...]:
        """The joins that are needed."""
        needed = self._inputs(mode)
        return tuple(join for join in self.joins if any(column.name in needed for column in join.columns))

    def source_columns(self, mode: Mode) -> tuple[RawColumn, ...]:
        """The raw columns that are needed."""
        needed = self._inputs(mode)
        for join in self.joined(mode):
            needed.update(column.name for column in join.on)
        return tuple(column for column in self.raw if column.name in needed)

    def _inputs(self, mode: Mode) -> set[str]:
        derivations = self.derivations(mode)
        needed = set(self.wanted(mode))
        for _, text in derivations:
            needed.update(parse(text, where="recipe").columns)
        return needed

    def missing(self, columns: Iterable[str], mode: Mode = "evaluate") -> tuple[str, ...]:
        """Return the raw columns that `columns` lack."""
        given = set(columns)
        return tuple(column.name for column in self.source_columns(mode) if column.name not in given)


def shown(value: object) -> str:
    """Return a category as it stands in a feature's name."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as a JSON object, for the manifest."""
    tree, arrays = codec.pack(recipe)
    assert isinstance(tree, dict)
    assert not arrays
    return tree


def recipe_from_json(tree: Mapping[str, Any], *, where: str = "manifest") -> Recipe:
    """Return the recipe of a JSON object.

    Raises
    ------
    DataError
        For anything `recipe_to_json` does not write.
    """
    try:
        recipe = codec.unpack(dict(tree), [])
        if not isinstance(recipe, Recipe):
            raise ValueError(f"a {type(recipe).__name__}")
        for name, text in (*recipe.derive, *((("where", recipe.where),) if recipe.where else ())):
            parse(text, where=f"recipe.{name}")
        return recipe
    except DataError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"no recipe this bigopt reads: {error}", where=where, hint="ingest again") from error
