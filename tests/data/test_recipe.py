"""Recipes: what a conf may say, what is decided by the data, and that the fitted value survives its journey as JSON."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigopt.core import codec
from bigopt.core.errors import BigoptError, ConfError, DataError
from bigopt.data.apply import apply_recipe
from bigopt.data.rawread import open_raw
from bigopt.data.recipe import Feature, Recipe, recipe_from_json, recipe_to_json
from bigopt.data.recipe_fit import fit
from bigopt.data.recipe_spec import make_spec


def fitted(path: Path, text: str, **spec: Any) -> Recipe:
    """Return the recipe fitted to a CSV of this text."""
    (path / "raw.csv").write_text(text)
    return fit(make_spec(str(path / "raw.csv"), **spec), open_raw(str(path / "raw.csv")))


def features(recipe: Recipe) -> dict[str, Feature]:
    return {feature.column: feature for feature in recipe.features}


def rows(path: Path, recipe: Recipe, text: str, **options: Any) -> np.ndarray[Any, Any]:
    (path / "later.csv").write_text(text)
    parts = list(apply_recipe(recipe, str(path / "later.csv"), mode="predict", **options))
    return np.concatenate([part.X for part in parts])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"columns": 5}, r"ingest.columns: a name or a list of names is expected, not 5"),
        ({"columns": ["a", "a"]}, "ingest.columns: a name stands twice"),
        ({"columns": {"a": "int12"}}, r"ingest.columns.a: unknown type 'int12' \(did you mean 'int32'"),
        ({"columns": ["aa"]}, r"ingest.columns: there is no column 'aa' \(did you mean 'a'"),
        ({"columns": ["z*"]}, r"ingest.columns: there is no column 'z\*'"),
        ({"columns": ["y"], "target": "y"}, "ingest.columns: no feature is left"),
        ({"derive": {"late": 3}}, "ingest.derive.late: an expression is text, not 3"),
        ({"derive": {"late": "y >"}}, "ingest.derive.late: cannot read 'y >'"),
        ({"derive": {"a": "y > 3"}}, "ingest.derive: a column 'a' is already in the source"),
        ({"derive": {"l": "y > 3"}, "columns": ["a"]}, "ingest.derive.l: derived column 'l' is used nowhere"),
        (
            {"derive": {"l": "m > 3", "m": "y"}, "columns": ["l"]},
            "ingest.derive.l: there is no column 'm' .put 'm' before 'l'",
        ),
        ({"where": "q > 1"}, "ingest.where: there is no column 'q'"),
        ({"where": "a + 1"}, r"ingest.where: 'a \+ 1' is no condition"),
        ({"encode": {"c": "onehott"}}, r"ingest.encode.c: unknown encoding 'onehott' \(did you mean 'onehot'"),
        ({"encode": {"q": "onehot"}}, "ingest.encode: there is no column 'q'"),
        ({"encode": {"c": {"top": 0}}}, "ingest.encode.c: top takes a number of categories"),
        ({"encode": {"c": {"onehot": []}}}, "ingest.encode.c: a list of values is expected"),
        ({"encode": {"c": {"onehot": ["u", "u"]}}}, "ingest.encode.c: a value stands twice"),
        ({"encode": {"c": {"onehot": ["u", 1]}}}, "ingest.encode.c: a list of number and text"),
        ({"encode": {"c": {"onehot": [1, 2]}}}, "ingest.encode.c: 1 is number, the column is text"),
        ({"encode": {"c": "onehot"}, "target": "c"}, "ingest.encode.c: the target and the weight are not encoded"),
        ({"nulls": "ignore"}, "ingest.nulls: unknown rule 'ignore'"),
        ({"nulls": {"q": "drop"}}, "ingest.nulls.q: 'q' is neither feature, target nor weight"),
        ({"nulls": {"*": "mean"}}, r"ingest.nulls.\*: '\*' takes error or drop"),
        ({"nulls": {"a": {"fill": 1}}}, "ingest.nulls.a: unknown rule"),
        ({"nulls": {"a": "x"}}, "ingest.nulls.a: 'x' is text, the column is number"),
        ({"nulls": {"c": "mean"}, "encode": {"c": "onehot"}}, "ingest.nulls.c: 'c' is no number"),
        ({"nulls": {"y": "mean"}, "target": "y"}, "ingest.nulls.y: a missing target or weight is not made up"),
        ({"nulls": {"a": 0.5}, "columns": {"a": "int8"}}, "ingest.nulls.a: 'a' is declared int8"),
        (
            {"nulls": {"c": "z"}, "encode": {"c": {"onehot": ["u", "v"]}}},
            "ingest.nulls.c: 'z' is none of the categories",
        ),
        ({"join": {"source": "b.csv", "on": "a"}}, "ingest.join: 'columns' is missing"),
        ({"join": {"source": "b.csv", "on": "a", "columns": "b", "how": "left"}}, "ingest.join: unknown key 'how'"),
        ({"join": "b.csv"}, "ingest.join: .*is expected"),
        ({"target": "q"}, "data.target: there is no column 'q'"),
        ({"target": "y", "weight": "y"}, "data.weight: 'y' is both target and weight"),
        ({"target": "y", "classes": ["a"]}, "data.classes: 'a' is text, the column is number"),
        ({"target": ["c", "y"]}, "data.target: targets of different kinds"),
        ({"source": []}, "ingest.source: no raw file is named"),
    ],
)
def test_a_conf_that_makes_no_sense_is_refused(tmp_path: Path, spec: dict[str, Any], message: str) -> None:
    raw = tmp_path / "raw.csv"
    raw.write_text("a,c,y\n1,u,5\n2,v,6\n")
    options = {"source": str(raw), **spec}
    if "columns" not in options and "c" not in options.get("encode", {}):
        options["columns"] = list(dict.fromkeys(["a", "y", *options.get("derive", {})]))
    with pytest.raises(ConfError, match=message) as caught:
        fit(make_spec(**options), open_raw(options["source"]))
    assert caught.value.exit_code == 2


def test_a_text_feature_names_the_two_ways_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"column 'c' holds text.*ingest.encode.c=onehot.*ingest.columns"):
        fitted(tmp_path, "a,c\n1,u\n")


def test_types_are_a_function_of_the_whole_file_not_of_its_first_rows(tmp_path: Path) -> None:
    head = "i,f,t,b,n\n" + "1,2,3,true,\n" * 20_000
    recipe = fitted(tmp_path, head + "4,5.5,6,false,7\n", encode={"t": "onehot"})
    assert [c.kind for c in recipe.raw] == ["integer", "number", "integer", "boolean", "number"]
    with pytest.raises(DataError, match="null in column 'n'"):
        rows(tmp_path, recipe, "i,f,t,b,n\n1,2,3,true,\n")
    recipe = fitted(tmp_path, head + "4,5.5,x6,maybe,7\n", encode={"t": "onehot", "b": "onehot"}, nulls={"n": 0})
    assert {c.name: c.kind for c in recipe.raw} == {
        "i": "integer",
        "f": "number",
        "t": "text",
        "b": "text",
        "n": "number",
    }
    found = features(recipe)
    assert found["t"].categories == ("3", "x6")
    assert found["b"].categories == ("maybe", "true")
    assert found["i"].dtype == "int64"
    assert found["f"].dtype == "float64"
    assert recipe.dtype == "float64"


def test_the_order_of_rows_does_not_change_types(tmp_path: Path) -> None:
    values = ["5", "5.0", "1.5", "NA"]
    for tail, kind in ((values[:2], "integer"), (values[:3], "number"), ([*values, "x"], "text")):
        for order in (tail, tail[::-1]):
            column = "".join(f"1,{value}\n" * 9000 for value in order)
            recipe = fitted(tmp_path, "k,a\n" + column, columns=["k"], where="a is not null")
            assert [c.kind for c in recipe.raw] == ["integer", kind]


def test_a_declared_type_is_kept_and_what_does_not_fit_is_an_error(tmp_path: Path) -> None:
    text = "a,b\n" + "1,2\n" * 9000 + "1.5,2\n"
    with pytest.raises(DataError, match=r"'1.5' in column 'a' is not an integer.*a: float64") as caught:
        fitted(tmp_path, text, columns={"a": "int8", "b": None})
    assert caught.value.where == f"{tmp_path / 'raw.csv'}, line 9002"
    recipe = fitted(tmp_path, "a\n1\n200\n", columns={"a": "int8"})
    with pytest.raises(DataError, match="200 in column 'a' cannot be held as int8"):
        rows(tmp_path, recipe, "a\n1\n200\n")
    recipe = fitted(tmp_path, "a\n1\n", columns={"a": "float32"})
    with pytest.raises(DataError, match=r"1e\+39 in column 'a' cannot be held as float32"):
        rows(tmp_path, recipe, "a\n1\n1e39\n")


@pytest.mark.parametrize("text", ["1_0", "٣", "inf", "0x10", "1e400", "1,5"])
def test_what_only_python_takes_for_a_number_is_none(tmp_path: Path, text: str) -> None:
    recipe = fitted(tmp_path, "a\n1.5\n", columns={"a": "float64"})
    with pytest.raises(DataError, match=r"is not a number|cannot be held|fields"):
        rows(tmp_path, recipe, f"a\n2\n{text}\n")


def test_every_spelling_of_null(tmp_path: Path) -> None:
    recipe = fitted(tmp_path, "a,k\n1,1\n3,2\n", columns=["a"], nulls={"a": "mean"})
    text = "a\n" + "\n".join(['""', "NA", "N/A", "NaN", "nan", "null", "NULL", "7"]) + "\n"
    assert rows(tmp_path, recipe, text).tolist() == [[2.0]] * 7 + [[7.0]]


def test_onehot_ordinal_and_top(tmp_path: Path) -> None:
    text = "c,s,h,b\n" + "".join(f"{c},{s},{h},{b}\n" for c, s, h, b in zip("aaabbcd", "lmsslml", "7678967", "1010011"))
    spec = {"encode": {"c": {"top": 2}, "s": {"ordinal": ["s", "m", "l"]}, "h": "ordinal", "b": {"onehot": [1, 0]}}}
    recipe = fitted(tmp_path, text, **spec)
    assert recipe.columns == ("c=a", "c=b", "c=(other)", "s", "h", "b=1", "b=0")
    assert recipe.dtype == "uint8"
    assert rows(tmp_path, recipe, "c,s,h,b\na,s,6,1\nz,m,9,0\nb,l,7,1\n").tolist() == [
        [1, 0, 0, 0, 0, 1, 0],
        [0, 0, 1, 1, 3, 0, 1],
        [0, 1, 0, 2, 1, 1, 0],
    ]
    with pytest.raises(DataError, match=r"'xl' in column 's' is none of the 3 categories.*an ordinal has no zero"):
        rows(tmp_path, recipe, "c,s,h,b\na,xl,6,1\n", unknown="zero")
    with pytest.raises(DataError, match=r"'2' in column 'b' is none of the 2 categories.*data.unknown=zero"):
        rows(tmp_path, recipe, "c,s,h,b\na,s,6,2\n")
    assert rows(tmp_path, recipe, "c,s,h,b\na,s,6,2\n", unknown="zero").tolist() == [[1, 0, 0, 0, 0, 0, 0]]


def test_top_of_few_categories_is_onehot(tmp_path: Path) -> None:
    recipe = fitted(tmp_path, "c\nx\ny\n", encode={"c": {"top": 5}})
    assert recipe.columns == ("c=x", "c=y")


def test_equally_frequent_categories_are_taken_in_order(tmp_path: Path) -> None:
    recipe = fitted(tmp_path, "c\nz\ny\nx\nw\nw\n", encode={"c": {"top": 3}})
    assert features(recipe)["c"].categories == ("w", "x", "y")


def test_declared_categories_keep_their_order_and_refuse_others(tmp_path: Path) -> None:
    recipe = fitted(tmp_path, "c\nb\na\n", encode={"c": {"onehot": ["b", "a", "z"]}})
    assert recipe.columns == ("c=b", "c=a", "c=z")
    with pytest.raises(DataError, match="'q' in column 'c'"):
        rows(tmp_path, recipe, "c\nq\n")


def test_categories_and_means_are_of_the_rows_that_are_kept(tmp_path: Path) -> None:
    text = "c,x,y\na,1,1\nb,5,NA\nc,100,2\na,,3\nd,3,4\n"
    recipe = fitted(
        tmp_path,
        text,
        columns=["x"],
        encode={"c": "onehot"},
        where="x is null or x < 50",
        nulls={"x": "mean", "y": "drop"},
        target="y",
    )
    assert features(recipe)["c"].categories == ("a", "d")
    assert features(recipe)["x"].fill == 2.0
    assert features(recipe)["x"].dtype == "float64"


def test_too_many_categories_name_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"more than 10000 categories in column 'c'.*\{top: 100\}"):
        fitted(tmp_path, "c\n" + "".join(f"v{i}\n" for i in range(10_002)), encode={"c": "onehot"})
    with pytest.raises(DataError, match=r"1.5 in column 'x' cannot be held as int64"):
        fitted(tmp_path, "x\n1.5\n", encode={"x": "onehot"})


def test_two_features_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfError, match="'c' and 'c=a' both make a feature 'c=a'"):
        fitted(tmp_path, "c,c=a\na,1\n", encode={"c": "onehot"})


def test_no_row_left_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row is left"):
        fitted(tmp_path, "a\n1\n", where="a > 1")


def test_patterns_and_order_of_columns(tmp_path: Path) -> None:
    recipe = fitted(tmp_path, "p1,q,p2,r\n1,2,3,4\n", columns=["r", "p*"])
    assert recipe.columns == ("r", "p1", "p2")
    assert [c.name for c in recipe.raw] == ["p1", "p2", "r"]


def test_predict_reads_only_what_features_are_made_of(tmp_path: Path) -> None:
    recipe = fitted(
        tmp_path,
        "a,b,c,d,e\n1,2,3,4,5\n",
        derive={"s": "a + b", "t": "s * d", "late": "c > 2"},
        columns=["t"],
        where="e == 5",
        target="late",
    )
    assert [c.name for c in recipe.source_columns("predict")] == ["a", "b", "d"]
    assert [c.name for c in recipe.source_columns("evaluate")] == ["a", "b", "c", "d", "e"]
    assert recipe.missing(["a"], "predict") == ("b", "d")
    assert rows(tmp_path, recipe, "d,b,a\n10,2,1\n").tolist() == [[30.0]]


def _rich(path: Path) -> Recipe:
    (path / "r.csv").write_text("k,w\n1,2.5\n")
    return fitted(
        path,
        "k,c,y,v\n1,a,u,1\n1,b,w,2\n",
        join={"source": str(path / "r.csv"), "on": ["k"], "columns": ["w"]},
        derive={"big": "w > 1"},
        columns={"w": "float32", "big": None},
        where="k < 9",
        encode={"c": "onehot"},
        nulls={"w": "mean", "y": "drop"},
        target="y",
        weight="v",
        classes=["u", "w"],
    )


def test_a_recipe_survives_json_and_the_wire(tmp_path: Path) -> None:
    recipe = _rich(tmp_path)
    assert recipe_from_json(json.loads(json.dumps(recipe_to_json(recipe)))) == recipe
    assert codec.loads([bytes(part) for part in codec.dumps(recipe)]) == recipe


def _changed(tree: Any) -> list[tuple[str, Any]]:
    """Every way to replace one value of a JSON tree by one of another type, or to take one key out."""
    made: list[tuple[str, Any]] = []

    def walk(node: Any, path: tuple[Any, ...]) -> None:
        keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
        for key in keys:
            for value in ({"$": "Sums", "f": {}}, [3.5], "\0", 3.5):
                other = copy.deepcopy(tree)
                inner = other
                for step in path:
                    inner = inner[step]
                inner[key] = value
                made.append((f"{(*path, key)} = {value}", other))
            walk(node[key], (*path, key))

    walk(tree, ())
    return made


def test_no_altered_recipe_gets_through_as_anything_but_an_error_of_ours_or_a_recipe(tmp_path: Path) -> None:
    tree = recipe_to_json(_rich(tmp_path))
    refused = 0
    for what, other in _changed(tree):
        try:
            got = recipe_from_json(other)
        except BigoptError:
            refused += 1
        except Exception as error:
            pytest.fail(f"{what}: {type(error).__name__}: {error}")
        else:
            assert isinstance(got, Recipe)
    assert refused > 300
    for bad in ({}, {"$": "Recipe", "f": {}}, {"$": "Partition", "f": {"index": 0, "start": 0, "rows": 1}}):
        with pytest.raises(DataError, match="no recipe this bigopt reads"):
            recipe_from_json(bad)
    tree["f"]["version"] = 2
    with pytest.raises(DataError, match="version 2, this bigopt reads 1"):
        recipe_from_json(tree)


def test_whole_floats_pass_for_integers_as_other_tools_write_them(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    recipe = fitted(tmp_path, "h,a\n5,1\n6,2\n", columns={"a": "int16"}, encode={"h": "onehot"}, nulls={"a": -1})
    assert [column.kind for column in recipe.raw] == ["integer", "integer"]
    wanted = [[7, 0, 1], [-1, 1, 0]]
    assert rows(tmp_path, recipe, "h,a\n6.0,7.0\n5,\n").tolist() == wanted
    pq.write_table(pa.table({"h": [6.0, 5.0], "a": [7.0, float("nan")]}), tmp_path / "later.parquet")
    (part,) = list(apply_recipe(recipe, str(tmp_path / "later.parquet"), mode="predict"))
    assert part.X.tolist() == wanted
    pq.write_table(pa.table({"h": [6.0, 5.5], "a": [7.0, 8.0]}), tmp_path / "later.parquet")
    with pytest.raises(DataError, match=r"5\.5 in column 'h' cannot be held as int64") as caught:
        list(apply_recipe(recipe, str(tmp_path / "later.parquet"), mode="predict"))
    assert caught.value.where == f"{tmp_path / 'later.parquet'}, row 1"
    pq.write_table(pa.table({"h": ["6"], "a": [7.0]}), tmp_path / "later.parquet")
    with pytest.raises(DataError, match="column 'h' is text, not integer"):
        list(apply_recipe(recipe, str(tmp_path / "later.parquet"), mode="predict"))


def test_raw_files_behind_a_url() -> None:
    fsspec = pytest.importorskip("fsspec")
    text = "a,b\n" + "".join(f"{i},{i * i}\n" for i in range(100))
    with fsspec.open("memory://raw/a.csv", "w") as handle:
        handle.write(text)
    source = open_raw("memory://raw/a.csv")
    recipe = fit(make_spec("memory://raw/a.csv", target="b"), source)
    (part,) = list(apply_recipe(recipe, "memory://raw/a.csv", mode="evaluate"))
    assert part.X[:, 0].tolist() == list(range(100))
    assert part.y is not None
    assert part.y.tolist() == [i * i for i in range(100)]
    with pytest.raises(DataError, match="no such file"):
        open_raw("memory://raw/none.csv")
