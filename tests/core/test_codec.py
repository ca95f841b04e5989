"""What travels comes back equal to the bit; what does not belong is refused, whatever it claims."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import random
import stat
import zipfile
from collections import Counter, OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bigopt.core.codec import atomic_file, dumps, load, loads, pack, save, unpack, wire
from bigopt.core.errors import CheckpointError, ConfError
from bigopt.core.sums import Moments, Sums


@wire
@dataclass(frozen=True)
class Leaf:
    name: str
    value: Any = None


@wire
class Couple(NamedTuple):
    left: Any
    right: Any


@wire
@dataclass(frozen=True)
class Positive:
    value: float

    def __post_init__(self) -> None:
        if self.value <= 0:
            raise ConfError("must be positive")


class Stranger(NamedTuple):
    left: int
    right: int


@dataclass(frozen=True)
class Unregistered:
    value: int


class Text(str):
    __slots__ = ()


dtypes = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?"),
    hnp.complex_number_dtypes(),
    hnp.byte_string_dtypes(min_len=1),
    hnp.unicode_string_dtypes(min_len=1),
)
arrays = hnp.arrays(dtypes, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text())
values = st.recursive(
    st.one_of(scalars, arrays, arrays.map(lambda a: a.T), st.builds(Leaf, st.text(), arrays)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text(), inner, max_size=4),
        st.builds(Leaf, st.text(), inner),
        st.builds(Couple, inner, inner),
    ),
    max_leaves=8,
)


def same(a: Any, b: Any) -> bool:
    """Equality of type, structure and bits (NaN payloads and signed zeros of arrays included)."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (Leaf, Couple)):
        return all(same(getattr(a, f), getattr(b, f)) for f in a.__annotations__)
    return bool(a == b)


def message(value: Any) -> list[bytes]:
    return [bytes(part) for part in dumps(value)]


@given(values)
def test_a_message_comes_back_equal(value: Any) -> None:
    assert same(loads(message(value)), value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values)
def test_a_file_comes_back_equal(tmp_path: Path, value: Any) -> None:
    save(tmp_path / "value.npz", value)
    assert same(load(tmp_path / "value.npz"), value)


@pytest.mark.parametrize(
    ("scalar", "plain"),
    [(np.float64(0.1), 0.1), (np.float32(0.1), float(np.float32(0.1))), (np.int8(-3), -3), (np.True_, True),
     (np.uint64(2**64 - 1), 2**64 - 1), (np.str_("x"), "x")],
)  # fmt: skip
def test_numpy_scalars_become_python_numbers(scalar: Any, plain: Any) -> None:
    assert same(loads(message([scalar])), [plain])


def test_nothing_is_copied_that_is_contiguous() -> None:
    x = np.arange(6.0).reshape(2, 3)
    part = dumps(Leaf("x", x))[1]
    x[0, 0] = -1.0
    assert np.frombuffer(part)[0] == -1.0


def test_views_of_immutable_parts_are_read_only_and_loaded_files_are_not(tmp_path: Path) -> None:
    assert not loads(message(np.ones(3))).flags.writeable
    assert loads([bytearray(p) for p in dumps(np.ones(3))]).flags.writeable
    save(tmp_path / "x", np.ones(3))
    assert load(tmp_path / "x").flags.writeable


def test_a_memory_map_travels_as_an_array(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "m", dtype=np.float64, mode="w+", shape=(4,))
    mapped[:] = [1, 2, 3, 4]
    got = loads(message(mapped))
    assert type(got) is np.ndarray
    assert got.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "value",
    [
        Unregistered(1),
        Stranger(1, 2),
        OrderedDict(a=1),
        Counter("ab"),
        Text("x"),
        {1: "x"},
        {"a": {Text("k"): 1}},
        {1, 2},
        b"bytes",
        1j,
        object(),
        len,
        Leaf,
        np.array([object()], dtype=object),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        np.zeros(2, dtype=[("a", "i4")]),
        np.ma.masked_array([1.0, 2.0], mask=[True, False]),
        np.datetime64("2020-01-01", "ns"),
        np.timedelta64(3, "ns"),
        np.longdouble(1),
        np.complex64(1),
        np.void(b"ab"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_unregistered_types_are_refused(value: Any) -> None:
    for held in (value, [value], (value,), {"k": value}, Leaf("x", value)):
        with pytest.raises(TypeError, match="not travel"):
            pack(held)


def test_a_name_is_registered_once() -> None:
    with pytest.raises(TypeError, match="two wire types are called Sums"):
        wire(dataclass(frozen=True)(type("Sums", (), {})))
    assert isinstance(loads(message(Sums(np.ones(1), 1.0, 1.0, 1))), Sums)


@pytest.mark.parametrize(
    "tree",
    [
        {"@": 1},
        {"@": -1},
        {"@": "0"},
        {"@": None},
        {"t": 3},
        {"d": [1]},
        {"$": "Leaf", "f": {"value": 1}},
        {"$": "Leaf", "f": {"name": "a", "other": 1}},
        {"$": "Unregistered", "f": {"value": 1}},
        {"$": ["Leaf"], "f": {}},
        {"$": "Leaf"},
        {"$": "Positive", "f": {"value": -1.0}},
        {},
        {"x": 1},
    ],
)
def test_trees_that_pack_cannot_have_made_are_refused(tree: Any) -> None:
    with pytest.raises(ValueError, match="not a bigopt value"):
        unpack(tree, [np.ones(1)])
    with pytest.raises(ValueError, match="not a bigopt value"):
        unpack([{"t": [tree]}], [np.ones(1)])


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"v": {"@": 0}, "a": []}',
        b'{"v": {"@": 0}, "a": [["<f8", [3]]]}',
        b'{"v": {"@": 0}, "a": [["<f8", [1e9]]]}',
        b'{"v": {"@": 0}, "a": [["<f8", [-3, -1]]]}',
        b'{"v": {"@": 0}, "a": [["|O", [2]]]}',
        b'{"v": {"@": 0}, "a": [["<M8[ns]", [2]]]}',
        b'{"v": {"@": 0}, "a": [["i4,i4", [2]]]}',
        b'{"v": {"@": 0}, "a": [["no", [2]]]}',
        b"[" * 100_000,
    ],
)
def test_broken_messages_are_value_errors(header: bytes) -> None:
    with pytest.raises(ValueError):
        loads([header, np.ones(2).tobytes()])
    with pytest.raises(ValueError):
        loads([])


# ---------------------------------------------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def value() -> Any:
    draw = np.random.default_rng(0)
    return Couple(
        Leaf("params", draw.standard_normal(40).astype(np.float32)),
        {"moments": Moments(3.0, draw.standard_normal(4), np.ones(4)), "step": 7, "classes": ("a", "b")},
    )


def equal(a: Any, b: Any) -> bool:
    return json.dumps(pack(a)[0]) == json.dumps(pack(b)[0]) and all(map(same, pack(a)[1], pack(b)[1]))


def test_mutated_files_give_the_value_or_a_checkpoint_error(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "value.npz"
    save(path, value)
    whole = path.read_bytes()
    draw = random.Random(20)
    refused = right = 0
    for _ in range(2000):
        data = bytearray(whole)
        kind = draw.choice(("flip", "byte", "run", "cut", "insert", "drop", "repeat"))
        at = draw.randrange(len(data))
        if kind == "flip":
            data[at] ^= 1 << draw.randrange(8)
        elif kind == "byte":
            data[at] = draw.randrange(256)
        elif kind == "run":
            data[at : at + 8] = draw.randbytes(len(data[at : at + 8]))
        elif kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = draw.randbytes(draw.randrange(1, 9))
        elif kind == "drop":
            del data[at : at + draw.randrange(1, 9)]
        else:
            data[at:at] = data[at : at + 64]
        path.write_bytes(data)
        try:
            got = load(path)
        except CheckpointError as error:
            refused += error.where == str(path) and error.exit_code == 6
        else:
            assert equal(got, value), (kind, at)
            right += 1
    assert refused + right == 2000
    assert refused > 1000  # the mutations bite


def test_every_flipped_bit_of_the_arrays_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    x = np.random.default_rng(1).standard_normal(16)
    save(path, x)
    whole = path.read_bytes()
    start = whole.index(x.tobytes())
    for at in range(start, start + x.nbytes):
        for bit in range(8):
            data = bytearray(whole)
            data[at] ^= 1 << bit
            path.write_bytes(data)
            with pytest.raises(CheckpointError, match="CRC"):
                load(path)


def npy(header: str, body: bytes = b"", version: int = 1) -> bytes:
    text = header.encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2, "little") + text + body


TREE = np.frombuffer(b'{"@": 0}', np.uint8)


def npy_of(array: Any) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array)
    return stream.getvalue()


def archive(path: Path, members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as target:
        for name, data in members:
            target.writestr(name, data)
    return path


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (self.path,))


def test_pickled_objects_are_refused_and_never_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    objects = io.BytesIO()
    np.lib.format.write_array(objects, np.array([Canary(str(canary))], dtype=object), allow_pickle=True)
    path = archive(tmp_path / "a", [("tree.npy", npy_of(TREE)), ("a0.npy", objects.getvalue())])
    with pytest.raises(CheckpointError, match="dtype object"):
        load(path)
    plain = tmp_path / "b"
    plain.write_bytes(pickle.dumps(Canary(str(canary))))
    with pytest.raises(CheckpointError):
        load(plain)
    archive(path, [("tree.npy", npy_of(TREE)), ("a0.pkl", pickle.dumps(Canary(str(canary))))])
    with pytest.raises(CheckpointError, match="members"):
        load(path)
    assert not canary.exists()


def test_a_compressed_bomb_is_refused_before_it_unfolds(tmp_path: Path) -> None:
    bomb = npy_of(np.zeros(1 << 20))
    path = archive(tmp_path / "z", [("tree.npy", npy_of(TREE)), ("a0.npy", bomb)], zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match="compressed"):
        load(path)


@pytest.mark.parametrize(
    "shape", ["(1000000000000000,)", "(1000000, 1000000, 1000)", "(-2,)", "(4611686018427387905,)"]
)
def test_a_header_that_claims_more_than_follows_is_refused(tmp_path: Path, shape: str) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}"
    path = archive(tmp_path / "z", [("tree.npy", npy_of(TREE)), ("a0.npy", npy(header, bytes(4)))])
    with pytest.raises(CheckpointError, match="has 4 bytes for shape"):
        load(path)


def test_overlapping_members_are_refused(tmp_path: Path) -> None:
    """Many directory entries that share one body: small on disk, large in memory."""
    body = npy_of(np.zeros(1000))
    path = archive(tmp_path / "z", [("tree.npy", npy_of(TREE)), ("a0.npy", body)])
    with zipfile.ZipFile(path, "a") as target:
        source = target.getinfo("a0.npy")
        for k in range(1, 50):
            twin = zipfile.ZipInfo(f"a{k}.npy")
            twin.header_offset, twin.CRC = source.header_offset, source.CRC
            twin.file_size, twin.compress_size = source.file_size, source.compress_size
            target.filelist.append(twin)
            target.NameToInfo[twin.filename] = twin
        target._didModify = True
    assert path.stat().st_size < 20_000
    with pytest.raises(CheckpointError, match="claims 40"):
        load(path)


def test_the_limit_is_kept(tmp_path: Path) -> None:
    save(tmp_path / "x", np.zeros(1000))
    assert load(tmp_path / "x", limit=10_000).shape == (1000,)
    with pytest.raises(CheckpointError, match="limit 8000"):
        load(tmp_path / "x", limit=8000)


@pytest.mark.parametrize(
    "members",
    [
        [("tree.npy", npy_of(TREE))],
        [("a0.npy", npy_of(np.ones(2)))],
        [("tree.npy", npy_of(TREE)), ("a1.npy", npy_of(np.ones(2)))],
        [("tree.npy", npy_of(TREE)), ("../a0.npy", npy_of(np.ones(2)))],
        [("tree.npy", npy_of(TREE)), ("/a0.npy", npy_of(np.ones(2)))],
        [("tree.npy", npy_of(TREE)), ("a00.npy", npy_of(np.ones(2)))],
        [("tree.npy", npy_of(TREE)), ("a0.npy", b"not npy")],
        [("tree.npy", npy_of(TREE)), ("a0.npy", npy("{'descr': '<f8'", b""))],
        [
            ("tree.npy", npy_of(TREE)),
            ("a0.npy", npy("{'descr': '<f8', 'fortran_order': False, 'shape': (0,)}", b"", 9)),
        ],
        [("tree.npy", npy_of(TREE)), ("a0.npy", npy_of(np.array(["2020"], dtype="M8[D]")))],
        [("tree.npy", npy_of(np.frombuffer(b"[" * 200_000, np.uint8)))],
        [("tree.npy", npy_of(np.frombuffer(b'{"$": "Positive", "f": {"value": -1}}', np.uint8)))],
        [("tree.npy", npy_of(np.frombuffer(b"\xff\xfe\x00", np.uint8)))],
    ],
)
def test_archives_that_bigopt_does_not_write_are_refused(tmp_path: Path, members: list[tuple[str, bytes]]) -> None:
    with pytest.raises(CheckpointError):
        load(archive(tmp_path / "x", members))


def test_duplicate_members_are_refused(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = archive(tmp_path / "x", [("tree.npy", npy_of(TREE)), ("a0.npy", b""), ("a0.npy", npy_of(np.ones(1)))])
    with pytest.raises(CheckpointError, match="members"):
        load(path)


def test_an_encrypted_flag_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    save(path, np.ones(2))
    data = path.read_bytes()
    at = data.index(b"PK\x01\x02") + 8
    path.write_bytes(data[:at] + b"\x01" + data[at + 1 :])
    with pytest.raises(CheckpointError, match="encrypted"):
        load(path)


def test_missing_and_foreign_paths(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        load(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="directory"):
        load(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(CheckpointError, match="damaged or not written by bigopt"):
        load(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="cannot write: No such file"):
        save(tmp_path / "no" / "x", 1)


# ---------------------------------------------------------------------------------------------------------- writing


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "x"
    save(path, {"step": 1})

    def torn() -> None:
        with atomic_file(path) as handle:
            handle.write(b"half")
            raise RuntimeError("power")

    with pytest.raises(RuntimeError, match="power"):
        torn()
    assert load(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["x"]
    with pytest.raises(TypeError):
        save(path, object())
    assert load(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["x"]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with atomic_file(path) as handle:
        handle.write(b"new")
        handle.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_the_order_of_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file reaches the disk before its name, the name before the commit is reported."""
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(fd: int) -> None:
        calls.append("fsync directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "fsync file")
        fsync(fd)

    def recorded_replace(a: Any, b: Any) -> None:
        calls.append("rename")
        replace(a, b)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    save(tmp_path / "x", np.ones(3))
    assert calls == ["fsync file", "rename", "fsync directory"]


def test_files_get_the_users_mode(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        save(tmp_path / "x", 1)
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640
