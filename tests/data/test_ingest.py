"""Ingest from end to end, against plain Python that reads the same files once more."""

from __future__ import annotations

import csv
import gzip
import random
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigopt.core.errors import BigoptError, ConfError, DataError
from bigopt.data.apply import apply_recipe, raw_batches
from bigopt.data.ingest import IngestResult, choose_format, ingest_files
from bigopt.data.open import open_dataset
from bigopt.data.recipe import Recipe, recipe_from_json
from bigopt.data.recipe_spec import make_spec

CARRIERS = ("AA", "UA", "DL", "WN")


def read_back(path: Path | str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None, Any]:
    """Return X, y and the dataset of what was written."""
    dataset = open_dataset(str(path), need_target=False)
    pieces = [piece for partition in dataset.partitions for piece in dataset.source.pieces(partition)]
    y = None if pieces[0].y is None else np.concatenate([p.y for p in pieces if p.y is not None])
    return np.concatenate([piece.X for piece in pieces]), y, dataset


def recipe_of(path: Path | str) -> Recipe:
    manifest = open_dataset(str(path), need_target=False).manifest
    assert manifest is not None
    assert manifest.recipe is not None
    return recipe_from_json(manifest.recipe)


def flights(rows: int, seed: int = 0) -> list[dict[str, str]]:
    """Small made-up flights with nulls."""
    draw = random.Random(seed)
    made = []
    for i in range(rows):
        delay = draw.choice(["NA", "", *map(str, range(-20, 60))])
        made.append(
            {
                "id": str(i),
                "carrier": draw.choice(CARRIERS),
                "dist": str(draw.randint(80, 3000)),
                "dep_delay": delay,
                "arr_delay": delay if delay in ("NA", "") else f"{int(delay) + draw.randint(-10, 10)}.5",
                "hour": str(draw.randint(5, 8)),
                "note": draw.choice(["plain", 'with "quotes", and commas', "two\nlines", "Überschuß"]),
            }
        )
    return made


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


SPEC: dict[str, Any] = {
    "columns": {"dist": "int16", "dep_delay": "float32", "far": None},
    "derive": {"far": "dist > 1000", "late": "arr_delay > 15"},
    "where": "carrier != 'WN'",
    "encode": {"carrier": "onehot", "hour": "onehot"},
    "nulls": {"late": "drop", "dep_delay": "mean"},
    "target": "late",
}
NAMES = ("dist", "dep_delay", "far", "carrier=AA", "carrier=DL", "carrier=UA", "hour=5", "hour=6", "hour=7", "hour=8")


def by_hand(rows: list[dict[str, str]], *, keep_all: bool = False) -> tuple[list[list[float]], list[bool]]:
    """The same recipe in plain Python."""
    kept = [r for r in rows if r["carrier"] != "WN" and r["arr_delay"] not in ("NA", "")]
    known = [float(r["dep_delay"]) for r in kept if r["dep_delay"] not in ("NA", "")]
    mean = sum(known) / len(known)
    X, y = [], []
    for r in rows if keep_all else kept:
        delay = mean if r["dep_delay"] in ("NA", "") else float(r["dep_delay"])
        X.append(
            [float(r["dist"]), float(np.float32(delay)), float(int(r["dist"]) > 1000)]
            + [float(r["carrier"] == c) for c in ("AA", "DL", "UA")]
            + [float(r["hour"] == str(h)) for h in range(5, 9)]
        )
        y.append(None if r["arr_delay"] in ("NA", "") else float(r["arr_delay"]) > 15)
    return X, y  # type: ignore[return-value]


@pytest.mark.parametrize("format", ["zarr", "parquet"])
def test_a_csv_becomes_what_plain_python_makes_of_it(tmp_path: Path, format: str) -> None:
    rows = flights(20_000)
    raw = write_csv(tmp_path / "flights.csv", rows)
    result = ingest_files(make_spec(str(raw), **SPEC), str(tmp_path / f"d.{format}"), partition_rows=3000)
    X, y, dataset = read_back(tmp_path / f"d.{format}")
    wanted, labels = by_hand(rows)
    assert dataset.columns == NAMES
    assert dataset.target == ("late",)
    assert X.dtype == np.float32
    np.testing.assert_array_equal(X, np.array(wanted))
    assert y is not None
    assert y.dtype == bool
    assert y.tolist() == labels
    assert [p.rows for p in dataset.partitions] == [3000] * (len(labels) // 3000) + [len(labels) % 3000]
    wn = sum(r["carrier"] == "WN" for r in rows)
    assert result == IngestResult(
        out=str(tmp_path / f"d.{format}"),
        format=format,
        rows_read=20_000,
        rows=len(labels),
        left_out_where=wn,
        left_out_nulls=20_000 - wn - len(labels),
        filled={},
        columns=NAMES,
        target=("late",),
        dtype="float32",
        partitions=len(dataset.partitions),
        fingerprint=dataset.source.identity(),
    )


def test_zarr_and_parquet_of_the_same_rows_hold_the_same_bits(tmp_path: Path) -> None:
    raw = write_csv(tmp_path / "flights.csv", flights(5000))
    for name in ("a.zarr", "b.parquet"):
        ingest_files(make_spec(str(raw), **SPEC), str(tmp_path / name), partition_rows=700)
    (X, y, one), (X2, y2, two) = read_back(tmp_path / "a.zarr"), read_back(tmp_path / "b.parquet")
    assert X.tobytes() == X2.tobytes()
    assert y is not None
    assert y2 is not None
    assert y.tobytes() == y2.tobytes()
    assert one.partitions == two.partitions


def _packed(raw: Path, how: str) -> Path:
    path = raw.with_name(f"packed{how}")
    if how == ".csv.zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(raw, "inside.csv")
    elif how == ".csv.gz":
        path.write_bytes(gzip.compress(raw.read_bytes()))
    elif how == ".tsv":
        with raw.open(encoding="utf-8", newline="") as handle:
            rows = list(csv.reader(handle))
        with path.open("w", encoding="utf-8", newline="") as handle:
            csv.writer(handle, delimiter="\t").writerows(rows)
    else:
        text = raw.read_text(encoding="utf-8")
        path = raw.with_name("bom.csv")
        path.write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n\r\n")
    return path


@pytest.mark.parametrize("how", [".csv.zip", ".csv.gz", ".tsv", "bom"])
def test_the_packing_of_a_csv_changes_nothing(tmp_path: Path, how: str) -> None:
    raw = write_csv(tmp_path / "flights.csv", flights(3000))
    for source, out in ((raw, "plain.zarr"), (_packed(raw, how), "packed.zarr")):
        ingest_files(make_spec(str(source), **SPEC), str(tmp_path / out), partition_rows=500)
    (X, y, _), (X2, y2, _) = read_back(tmp_path / "plain.zarr"), read_back(tmp_path / "packed.zarr")
    np.testing.assert_array_equal(X, X2)
    np.testing.assert_array_equal(y, y2)  # type: ignore[arg-type]


def test_parts_of_a_file_give_what_the_whole_gives(tmp_path: Path) -> None:
    rows = flights(4000)
    whole = write_csv(tmp_path / "whole.csv", rows)
    (tmp_path / "parts").mkdir()
    for k, (start, stop) in enumerate([(0, 1), (1, 2500), (2500, 4000)]):
        part = [dict(reversed(r.items())) for r in rows[start:stop]]  # columns are matched by name, not by place
        write_csv(tmp_path / "parts" / f"{k}.csv", part)
    X, y, _ = _ingested(tmp_path, str(whole))
    for source in (str(tmp_path / "parts"), str(tmp_path / "parts" / "*.csv")):
        X2, y2, _ = _ingested(tmp_path, source)
        np.testing.assert_array_equal(X, X2)
        np.testing.assert_array_equal(y, y2)


def _ingested(tmp_path: Path, source: Any, **spec: Any) -> tuple[Any, Any, Any]:
    out = tmp_path / "out.zarr"
    ingest_files(make_spec(source, **(spec or SPEC)), str(out), force=True)
    return read_back(out)


def test_parquet_and_npz_give_what_the_csv_gives(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    rows = flights(3000)
    X, y, _ = _ingested(tmp_path, str(write_csv(tmp_path / "flights.csv", rows)))

    def number(text: str) -> float | None:
        return None if text in ("NA", "") else float(text)

    columns = {
        "carrier": pa.array([r["carrier"] for r in rows]).dictionary_encode(),
        "dist": pa.array([int(r["dist"]) for r in rows], pa.int16()),
        "dep_delay": pa.array([number(r["dep_delay"]) for r in rows], pa.float64()),
        "arr_delay": pa.array([number(r["arr_delay"]) for r in rows], pa.float32()),
        "hour": pa.array([int(r["hour"]) for r in rows], pa.uint8()),
        "day": pa.array([0] * len(rows), pa.date32()),  # not used, so its type does not matter
    }
    pq.write_table(pa.table(columns), tmp_path / "flights.parquet", row_group_size=777)
    X2, y2, _ = _ingested(tmp_path, str(tmp_path / "flights.parquet"))
    np.testing.assert_array_equal(X, X2)
    np.testing.assert_array_equal(y, y2)

    arrays = {
        "carrier": np.array([r["carrier"] for r in rows]),
        "dist": np.array([int(r["dist"]) for r in rows], dtype=">i2"),
        "dep_delay": np.array([np.nan if number(r["dep_delay"]) is None else number(r["dep_delay"]) for r in rows]),
        "arr_delay": np.array([np.nan if number(r["arr_delay"]) is None else number(r["arr_delay"]) for r in rows]),
        "hour": np.array([int(r["hour"]) for r in rows], dtype=np.float32),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "flights.npz", **arrays)
        X3, y3, _ = _ingested(tmp_path, str(tmp_path / "flights.npz"))
        np.testing.assert_array_equal(X, X3)
        np.testing.assert_array_equal(y, y3)


def test_an_image_array_becomes_columns_by_position(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (300, 4, 5), dtype=np.uint8)
    labels = np.arange(300, dtype=np.uint8) % 10
    np.savez(tmp_path / "images.npz", X=images, y=labels)
    for out in ("d.zarr", "d.parquet"):
        ingest_files(make_spec(str(tmp_path / "images.npz"), classes=list(range(10))), str(tmp_path / out))
        X, y, dataset = read_back(tmp_path / out)
        assert X.dtype == np.uint8
        np.testing.assert_array_equal(X, images.reshape(300, 20))
        np.testing.assert_array_equal(y, labels)  # type: ignore[arg-type]
        assert dataset.columns == tuple(f"x{j}" for j in range(20))
        assert dataset.classes == tuple(range(10))
        assert dataset.target_kind == "category"


def test_named_columns_several_targets_and_weights_of_an_npz(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    X, y, weight = draw.normal(size=(50, 3)), draw.normal(size=(50, 2)), draw.random(50)
    np.savez(tmp_path / "a.npz", X=X, y=y, weight=weight, columns=np.array(["a", "b", "c"]))
    spec = make_spec(str(tmp_path / "a.npz"), columns=["c", "a"], target="y", weight="weight")
    ingest_files(spec, str(tmp_path / "d.zarr"))
    got, labels, dataset = read_back(tmp_path / "d.zarr")
    np.testing.assert_array_equal(got, X[:, [2, 0]])
    np.testing.assert_array_equal(labels, y)  # type: ignore[arg-type]
    assert dataset.target == ("y0", "y1")
    pieces = [p for part in dataset.partitions for p in dataset.source.pieces(part)]
    np.testing.assert_array_equal(np.concatenate([p.weight for p in pieces]), weight)


def test_an_npy_has_features_only(tmp_path: Path) -> None:
    X = np.arange(60, dtype=np.int16).reshape(20, 3)
    np.save(tmp_path / "a.npy", X)
    ingest_files(make_spec(str(tmp_path / "a.npy"), columns=["x2", "x0"]), str(tmp_path / "d.zarr"))
    got, y, dataset = read_back(tmp_path / "d.zarr")
    assert y is None
    assert dataset.columns == ("x2", "x0")
    np.testing.assert_array_equal(got, X[:, [2, 0]])


def test_integer_targets_are_amounts_unless_classes_are_declared(tmp_path: Path) -> None:
    raw = write_csv(tmp_path / "a.csv", [{"x": str(i), "y": str(i % 3)} for i in range(30)])
    for classes, kind in ((None, "number"), ([0, 1, 2], "category")):
        ingest_files(make_spec(str(raw), target="y", classes=classes), str(tmp_path / "d.zarr"), force=True)
        _, y, dataset = read_back(tmp_path / "d.zarr")
        assert dataset.target_kind == kind
        assert dataset.classes == (None if classes is None else tuple(classes))
        assert y is not None
        assert y.tolist() == [i % 3 for i in range(30)]


def test_text_labels_stay_text(tmp_path: Path) -> None:
    raw = write_csv(tmp_path / "a.csv", [{"x": str(i), "y": "Überlang" if i % 2 else "b"} for i in range(30)])
    ingest_files(make_spec(str(raw), target="y"), str(tmp_path / "d.zarr"))
    _, y, dataset = read_back(tmp_path / "d.zarr")
    assert dataset.target_kind == "text"
    assert y is not None
    assert y.tolist() == ["Überlang" if i % 2 else "b" for i in range(30)]


def test_join_is_a_lookup_by_key(tmp_path: Path) -> None:
    draw = random.Random(3)
    left = [{"day": str(draw.randint(1, 9)), "at": draw.choice("xyz"), "v": str(i)} for i in range(500)]
    right = [
        {"temp": f"{d * 10 + k}.5", "at": a, "day": str(d), "sky": draw.choice(["clear", "NA"])}
        for d in range(1, 8)
        for k, a in enumerate("xyz")
    ]
    write_csv(tmp_path / "right.csv", right)
    spec = make_spec(
        str(write_csv(tmp_path / "left.csv", left)),
        join={"source": str(tmp_path / "right.csv"), "on": ["day", "at"], "columns": ["temp", "sky"]},
        columns={"v": "int16", "temp": "float32"},
        encode={"sky": "onehot"},
        nulls={"temp": -1, "sky": "unknown"},
    )
    result = ingest_files(spec, str(tmp_path / "d.zarr"))
    X, _, dataset = read_back(tmp_path / "d.zarr")
    found = {(r["day"], r["at"]): r for r in right}
    wanted = []
    for row in left:
        match = found.get((row["day"], row["at"]))
        sky = "unknown" if match is None or match["sky"] == "NA" else "clear"
        temp = -1.0 if match is None else float(match["temp"])
        wanted.append([float(row["v"]), temp, float(sky == "clear"), float(sky == "unknown")])
    assert dataset.columns == ("v", "temp", "sky=clear", "sky=unknown")
    np.testing.assert_array_equal(X, np.array(wanted))
    assert result.filled["temp"] == sum(row[1] == -1.0 for row in wanted)


def test_a_key_that_stands_twice_is_an_error_only_where_it_is_met(tmp_path: Path) -> None:
    right = write_csv(tmp_path / "right.csv", [{"k": k, "v": "1"} for k in "abca"])
    join = {"source": str(right), "on": ["k"], "columns": ["v"]}
    ingest_files(
        make_spec(str(write_csv(tmp_path / "l.csv", [{"k": "b"}])), join=join, columns=["v"]), str(tmp_path / "d")
    )
    left = write_csv(tmp_path / "l.csv", [{"k": "b"}, {"k": "a"}])
    with pytest.raises(DataError, match=r"more than one row of .*right.csv, line 2 and below has k a") as caught:
        ingest_files(make_spec(str(left), join=join, columns=["v"]), str(tmp_path / "e"))
    assert caught.value.where == f"{left}, line 3"


def test_evaluating_the_raw_data_gives_the_ingested_rows(tmp_path: Path) -> None:
    rows = flights(3000)
    raw = write_csv(tmp_path / "flights.csv", rows)
    X, y, _ = _ingested(tmp_path, str(raw))
    recipe = recipe_of(tmp_path / "out.zarr")
    parts = list(apply_recipe(recipe, str(raw), mode="evaluate"))
    np.testing.assert_array_equal(np.concatenate([p.X for p in parts]), X)
    np.testing.assert_array_equal(np.concatenate([p.y for p in parts if p.y is not None]), y)


def test_predict_needs_no_target_and_keeps_every_row(tmp_path: Path) -> None:
    rows = flights(3000)
    _ingested(tmp_path, str(write_csv(tmp_path / "flights.csv", rows)))
    recipe = recipe_of(tmp_path / "out.zarr")
    later = [{k: v for k, v in r.items() if k != "arr_delay"} for r in rows]
    raw = write_csv(tmp_path / "later.csv", later)
    assert recipe.missing(later[0], "predict") == ()
    assert recipe.missing(later[0], "evaluate") == ("arr_delay",)
    with pytest.raises(DataError, match="column 'arr_delay' is missing"):
        apply_recipe(recipe, str(raw), mode="evaluate")
    parts = list(apply_recipe(recipe, str(raw), mode="predict", unknown="zero"))
    wanted, _ = by_hand(rows, keep_all=True)
    np.testing.assert_array_equal(np.concatenate([p.X for p in parts]), np.array(wanted))
    assert all(p.y is None and p.weight is None for p in parts)
    assert not any(p.bad.any() for p in parts if p.bad is not None)
    with pytest.raises(DataError, match="'WN' in column 'carrier' is none of the 3 categories") as caught:
        list(apply_recipe(recipe, str(raw), mode="predict"))
    first = next(i for i, r in enumerate(rows) if r["carrier"] == "WN")
    line = 2 + first + sum("\n" in r["note"] for r in rows[:first])
    assert caught.value.where == f"{raw}, line {line}"


def test_predict_flags_rows_that_ingest_would_leave_out(tmp_path: Path) -> None:
    rows = [{"a": a, "c": c, "y": "1"} for a, c in [("1", "u"), ("", "v"), ("3", "NA"), ("4", "v")]]
    raw = write_csv(tmp_path / "a.csv", rows)
    spec = make_spec(str(raw), columns=["a"], encode={"c": "onehot"}, nulls="drop", target="y")
    ingest_files(spec, str(tmp_path / "d.zarr"))
    X, _, _ = read_back(tmp_path / "d.zarr")
    assert X.tolist() == [[1, 1, 0], [4, 0, 1]]
    manifest = open_dataset(str(tmp_path / "d.zarr")).manifest
    assert manifest is not None
    assert manifest.recipe is not None
    batches = raw_batches(manifest.recipe, str(raw), predict=True, columns=["c=v", "a"])
    assert batches is not None
    (rows_out,) = list(batches)
    assert rows_out.bad is not None
    assert rows_out.bad.tolist() == [False, True, True, False]
    assert rows_out.X.tolist() == [[0, 1], [0, 0], [0, 0], [1, 4]]


def test_raw_batches_says_none_for_what_is_not_raw(tmp_path: Path) -> None:
    raw = write_csv(tmp_path / "flights.csv", flights(100))
    ingest_files(make_spec(str(raw), **SPEC), str(tmp_path / "d.zarr"))
    manifest = open_dataset(str(tmp_path / "d.zarr")).manifest
    assert manifest is not None
    assert manifest.recipe is not None
    (tmp_path / "data.json").write_text("{}")
    assert raw_batches(manifest.recipe, str(tmp_path / "data.json"), predict=True) is None


@pytest.mark.all
def test_reading_takes_the_same_memory_whatever_the_length(tmp_path: Path) -> None:
    peaks = {}
    for rows in (100, 30_000, 60_000):  # the first one only warms up
        raw = write_csv(tmp_path / f"{rows}.csv", flights(rows))
        spec = make_spec(str(raw), **SPEC)
        tracemalloc.start()
        ingest_files(spec, str(tmp_path / f"{rows}.zarr"), partition_rows=2000)
        peaks[rows] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[60_000] < peaks[30_000] + 300_000  # the file is 1.2 MB longer, its fields as Python objects 20 MB


def test_an_npz_is_streamed(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", X=np.zeros((400_000, 20), dtype=np.float32), y=np.zeros(400_000))
    spec = make_spec(str(tmp_path / "a.npz"))
    tracemalloc.start()
    ingest_files(spec, str(tmp_path / "d.zarr"), partition_rows=20_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16_000_000  # the arrays are 35 MB


def test_an_output_in_the_way_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    raw = write_csv(tmp_path / "a.csv", [{"x": "1"}])
    ingest_files(make_spec(str(raw)), str(tmp_path / "d.zarr"))
    raw.write_text("no,csv\n1\n")
    with pytest.raises(ConfError, match="there already"):
        ingest_files(make_spec(str(raw)), str(tmp_path / "d.zarr"))
    with pytest.raises(DataError, match="1 fields"):
        ingest_files(make_spec(str(raw)), str(tmp_path / "d.zarr"), force=True)
    X, _, _ = read_back(tmp_path / "d.zarr")  # the failed run left the old one as it was
    assert X.tolist() == [[1]]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "d.zarr"]


@pytest.mark.parametrize(
    ("out", "asked", "wanted"),
    [("a.zarr", None, "zarr"), ("a.parquet", None, "parquet"), ("a/", None, "zarr"), ("a", "parquet", "parquet")],
)
def test_the_format_is_asked_for_or_by_suffix(out: str, asked: str | None, wanted: str) -> None:
    assert choose_format(out, asked) == wanted


@pytest.mark.parametrize(("out", "asked"), [("a.zarr", "parquet"), ("a.csv", None), ("a.npz", None)])
def test_formats_that_contradict_the_name_are_refused(out: str, asked: str | None) -> None:
    with pytest.raises(ConfError):
        choose_format(out, asked)


def test_a_dataset_is_not_written_over_its_raw_files(tmp_path: Path) -> None:
    raw = write_csv(tmp_path / "a.csv", [{"x": "1"}])
    for source, out in ((raw, tmp_path), (tmp_path, tmp_path / "inside")):
        with pytest.raises(ConfError, match="overlap"):
            ingest_files(make_spec(str(source)), str(out), format="zarr", force=True)


def damaged(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Raw files that cannot be read, with what must be said."""
    good = "a,b\n1,2\n3,4\n"
    texts = {
        "short.csv": ("a,b\n1,2\n3\n", r"short.csv, line 3: 1 fields, the header has 2 \(is the line cut off"),
        "long.csv": ('a,b\n1,2\n3,"4",5\n', r"long.csv, line 3: 3 fields, the header has 2 .*comma"),
        "blank.csv": ("a,b\n1,2\n\n3,4\n", "blank.csv, line 3: a blank line between rows"),
        "twice.csv": ("a,a\n1,2\n", "twice.csv, line 1: two columns are called 'a'"),
        "unnamed.csv": ("a,\n1,2\n", "unnamed.csv, line 1: field 2 of the header is empty"),
        "empty.csv": ("", "empty.csv: no header line"),
        "header.csv": ("a,b\n", "no row is left|no rows"),
        "quote.csv": ('a,b\n1,"2\n3,4\n', "quote.csv, line 2: malformed CSV from here on"),
        "text.csv": ("a,b\n1,2\n3,x\n", "column 'b' holds text.*ingest.encode.b=onehot"),
        "semicolon.csv": ("a;b\n1;2\n", "column 'a;b' holds text"),
    }
    for name, (text, message) in texts.items():
        (tmp_path / name).write_text(text)
        yield tmp_path / name, message
    (tmp_path / "latin.csv").write_bytes("a,b\n1,2\nä,2\n".encode("latin-1"))
    yield tmp_path / "latin.csv", "latin.csv, after line [0-9]: not UTF-8 text"
    (tmp_path / "wide.csv").write_text("a,b\n" + "1" * (17 << 20))
    yield tmp_path / "wide.csv", "wide.csv, line 2: longer than"
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(good.encode() * 1000)[:-20])
    yield tmp_path / "cut.csv.gz", "cut.csv.gz: damaged"
    (tmp_path / "no.csv.gz").write_text(good)
    yield tmp_path / "no.csv.gz", "no.csv.gz: (damaged|cannot be read)"
    (tmp_path / "no.zip").write_text(good)
    yield tmp_path / "no.zip", "no.zip: damaged"
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.csv", good)
        archive.writestr("b.csv", good)
    yield tmp_path / "two.zip", "two.zip: holds 2 files, not one table"
    with zipfile.ZipFile(tmp_path / "flip.csv.zip", "w") as archive:
        archive.writestr("a.csv", good)
    data = bytearray((tmp_path / "flip.csv.zip").read_bytes())
    data[data.index(b"3,4")] ^= 1
    (tmp_path / "flip.csv.zip").write_bytes(data)
    yield tmp_path / "flip.csv.zip", "flip.csv.zip: damaged.*CRC"
    np.savez(tmp_path / "object.npz", X=np.array([["a", 1]], dtype=object), allow_pickle=True)
    yield tmp_path / "object.npz", "a pickle"
    np.savez(tmp_path / "fortran.npz", X=np.asfortranarray(np.ones((3, 2))))
    yield tmp_path / "fortran.npz", "Fortran order"
    np.savez(tmp_path / "lengths.npz", X=np.ones((3, 2)), y=np.ones(4))
    yield tmp_path / "lengths.npz", "arrays of different lengths"
    np.savez(tmp_path / "infinite.npz", X=np.array([[1.0, 2.0], [np.inf, 0.0]]))
    yield tmp_path / "infinite.npz", "infinite.npz, row 1: inf in column 'x0' cannot be held as float64"
    np.save(tmp_path / "cut.npy", np.ones((100, 2)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-8])
    yield tmp_path / "cut.npy", "cut off"
    (tmp_path / "no.npz").write_bytes(b"\x93NUMPY nonsense")
    yield tmp_path / "no.npz", "damaged or no NumPy file|npy format"
    (tmp_path / "no.parquet").write_bytes(b"PAR1 nonsense")
    yield tmp_path / "no.parquet", "damaged or no Parquet file"
    yield tmp_path / "missing.csv", "missing.csv: no such file"
    yield tmp_path / "*.nothing", "no file matches"
    (tmp_path / "data.xlsx").write_bytes(b"")
    yield tmp_path / "data.xlsx", "no raw format bigopt reads.*.csv"


def test_damaged_files_are_refused_with_their_place(tmp_path: Path) -> None:
    import re

    pytest.importorskip("pyarrow")
    seen = 0
    for path, message in damaged(tmp_path):
        with pytest.raises(BigoptError) as caught:
            ingest_files(make_spec(str(path)), str(tmp_path / "out.zarr"))
        assert re.search(message, str(caught.value)), f"{path.name}: {caught.value}"
        assert caught.value.exit_code == (2 if path.name == "data.xlsx" else 3)
        assert not (tmp_path / "out.zarr").exists()
        seen += 1
    assert seen == 27
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".out")]
