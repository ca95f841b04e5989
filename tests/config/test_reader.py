"""Strict YAML: scalars, duplicates, tags, bombs, size, depth, encodings; nothing but typed errors comes out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import example, given, settings

from bigopt.config import base_yaml, load_conf, load_text
from bigopt.config.reader import MAX_BYTES, MAX_DEPTH, read_file, read_text, scalar
from bigopt.core.errors import BigoptError, ConfError, SecurityError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("+1e+3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-0", 0),
        ("-7", -7),
        ("+7", 7),
        ("0.10", 0.1),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("yes", "yes"),
        ("on", "on"),
        ("1_000", "1_000"),
        ("0x1F", "0x1F"),
        ("1:30", "1:30"),
        ("2013-01-01", "2013-01-01"),
        ("2GB", "2GB"),
        ("nan", "nan"),
        ("1e", "1e"),
        ("e3", "e3"),
        (".", "."),
        ("-", "-"),
        ("=", "="),
    ],
)
def test_plain_scalars(text: str, value: object) -> None:
    read = scalar(text, "here")
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("text", ["010", "-01", "00", ".inf", "-.INF", ".nan", ".NaN", "1e999", "9" * 401])
def test_plain_scalars_that_mean_nothing(text: str) -> None:
    with pytest.raises(ConfError) as caught:
        scalar(text, "a.yml:7")
    assert caught.value.where == "a.yml:7"


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_is_read_back(value: float) -> None:
    assert scalar(repr(value), "") == value


def test_quoted_scalars_are_text() -> None:
    assert read_text("a: '1'\nb: \"true\"\nc: ''\nd: '~'\ne: '010'\n", "x").plain() == {
        "a": "1", "b": "true", "c": "", "d": "~", "e": "010"
    }  # fmt: skip


def test_values_agree_with_pyyaml_where_both_are_sure() -> None:
    text = "a: [1, 2.5, -3, text, 'q', null, true]\nb:\n  c: {d: x, e: [[1], [2, 3]]}\n  f: |\n    two\n    lines\n"
    assert read_text(text, "x").plain() == yaml.safe_load(text)
    assert read_text(base_yaml(), "base.yml").plain().keys() == yaml.safe_load(base_yaml()).keys()


def test_lines_are_those_of_the_keys() -> None:
    root = read_text("a:\n  b:\n    - 1\n    - 2\n\n  c: {d: 3,\n     e: 4}\n", "f.yml")
    a = root.value["a"]
    assert a.where == "f.yml:1"
    assert a.value["b"].where == "f.yml:2"
    assert [n.where for n in a.value["b"].value] == ["f.yml:3", "f.yml:4"]
    assert a.value["c"].value["e"].where == "f.yml:7"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("model:\n  l2: 1\n  l2: 2\n", 3, "duplicate key 'model.l2'"),
        ("model: {l2: 1}\nrun: {}\nmodel: {l2: 1}\n", 3, "duplicate key 'model'"),
        ("data: {storage_options: {a: 1,\n a: 1}}", 2, "duplicate key 'data.storage_options.a'"),
        ("model: {l2: &x 1}", 1, "a YAML anchor, &x"),
        ("model: &m {l2: 1}", 1, "a YAML anchor, &m"),
        ("model:\n  l2: *x", 2, "a YAML alias, *x"),
        ("model:\n  <<: {l2: 1}", 2, "unknown key 'model.<<'"),
        ("a: 1\n---\nb: 2\n", 2, "a second YAML document"),
        ("model:\n\tl2: 1\n", 2, "not YAML"),
        ("model: {l2: 1\n", 2, "not YAML"),
        ("model: [1, 2\nrun: 3", 2, "not YAML"),
        ("? [a]\n: b\n", 1, "a key that is a list or a mapping"),
        ("1: 2\n", 1, "a key that is not text, 1"),
        ("schedule:\n  learning_rate: 010\n", 2, "schedule.learning_rate is 010, a number with a leading zero"),
        ("schedule:\n  learning_rate: .inf\n", 2, "schedule.learning_rate is .inf, not a finite number"),
        ("- a\n", 1, "a conf is a mapping of groups, found [a]"),
        ("hello\n", 1, "a conf is a mapping of groups, found hello"),
        ("\nmodel:\n", 2, "model is null, expected its keys"),
        ("model: 3\n", 1, "model is 3, expected its keys"),
    ],
)
def test_refused_with_line(text: str, line: int, message: str) -> None:
    with pytest.raises(ConfError) as caught:
        load_text(text, "bad.yml")
    assert caught.value.exit_code == 2
    assert caught.value.where == f"bad.yml:{line}"
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch CANARY']",
        "!!python/object/new:os.system ['touch CANARY']",
        "!!python/name:os.system ''",
        "!!python/module:os ''",
        "!!python/object/apply:subprocess.check_output [[touch, CANARY]]",
        "!include /etc/passwd",
        "!!str 1",
        "!!binary aGk=",
        "! x",
        "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch CANARY']",
    ],
)
@pytest.mark.parametrize("place", ["{}", "model: {}", "model: {{l2: {}}}", "model:\n  hidden: [1, {}]", "{}: 1"])
def test_tags_run_nothing(tag: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    conf = tmp_path / "evil.yml"
    conf.write_text(place.format(tag.replace("CANARY", str(tmp_path / "canary"))))
    before = set(tmp_path.iterdir())
    with pytest.raises(BigoptError) as caught:
        load_conf([conf])
    assert caught.value.exit_code in (2, 7)
    if "python" in tag and place != "{}: 1":
        assert isinstance(caught.value, SecurityError)
        assert caught.value.where.startswith(f"{conf}:")
    assert set(tmp_path.iterdir()) == before


def test_tags_on_the_command_line() -> None:
    with pytest.raises(SecurityError):
        load_text("", "x", ["model.l2=!!python/object/apply:os.system [ls]"])


def _laughs(levels: int) -> str:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        _laughs(9),
        "[" * 200_000,
        "{a: " * 100_000,
        "model: " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
        "- " * 100_000,
        "? " * 100_000,
    ],
)
def test_bombs(text: str) -> None:
    with pytest.raises(ConfError):
        load_text(text, "bomb.yml")


def test_bombs_need_no_memory() -> None:
    code = (
        "import sys\n"
        "from bigopt.config import load_text\n"
        "from bigopt.core.errors import ConfError\n"
        "for text in ('[' * 900_000, sys.argv[1], '{a: ' * 200_000):\n"
        "    try: load_text(text, 'x')\n"
        "    except ConfError: continue\n"
        "    sys.exit('accepted')\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, _laughs(9)], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 300e6


def test_depth_is_a_limit_not_a_ban() -> None:
    fine = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert len(read_text("a: " + fine, "x").value["a"].value) == 1
    with pytest.raises(ConfError, match="nested deeper"):
        read_text("a: " + "[" + fine + "]", "x")


def test_size(tmp_path: Path) -> None:
    conf = tmp_path / "large.yml"
    conf.write_text("#" * MAX_BYTES)
    assert read_file(conf).value == {}
    conf.write_text("#" * (MAX_BYTES + 1))
    with pytest.raises(ConfError, match="larger than 1 MB"):
        read_file(conf)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
def test_an_endless_file_ends() -> None:
    with pytest.raises(ConfError, match="larger than 1 MB"):
        load_conf(["/dev/zero"])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "flights.yml").write_text("")
    with pytest.raises(ConfError) as caught:
        load_conf([tmp_path / "fligths.yml"])
    assert caught.value.exit_code == 2
    assert caught.value.hint == "did you mean 'flights.yml'?"
    with pytest.raises(ConfError, match="directory"):
        load_conf([tmp_path])
    with pytest.raises(ConfError):
        load_conf([tmp_path / "no" / "such" / "place.yml"])
    with pytest.raises(ConfError, match="null byte"):
        load_conf([f"{tmp_path}/a\0b.yml"])


def test_encodings(tmp_path: Path) -> None:
    conf = tmp_path / "a.yml"
    conf.write_bytes(b"\xef\xbb\xbfrun: {seed: 3}\r\n")
    assert load_conf([conf]).run.seed == 3
    conf.write_bytes(b"run: {seed: 3}\ndata: {uri: \xff}\n")
    with pytest.raises(ConfError) as caught:
        load_conf([conf])
    assert caught.value.where == f"{conf}:2"
    conf.write_bytes(b"run: {seed: 3}\ndata: {uri: a\x00b}\n")
    with pytest.raises(ConfError, match="not YAML"):
        load_conf([conf])
    for empty in (b"", b"\n", b"# nothing\n", b"---\n", b"{}"):
        conf.write_bytes(empty)
        assert load_conf([conf]).stop.epochs == 5


@pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])
def test_both_parsers_of_pyyaml_agree(loader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if loader == "SafeLoader":
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    assert load_text(base_yaml(), "b").model.hidden == (128,)
    with pytest.raises(SecurityError):
        load_text("a: !!python/name:os.system x", "b")
    with pytest.raises(ConfError) as caught:
        load_text("model:\n  l2: 1\n  l2: 1\n", "b")
    assert caught.value.where == "b:3"
    with pytest.raises(ConfError, match="not YAML"):
        load_text("model: {a: 1", "b")


_WORDS = ["model", "l2: ", "optimizer:\n  ", "\x00", "é", "\ud800"]
_ALPHABET = st.sampled_from([*"ab:-[]{}'\"&*!|>%@#,?~ \n\t\\0123.e", *_WORDS])


def _code(call: Callable[[], object]) -> int:
    """Exit code of what must not raise anything but errors of bigopt's own."""
    try:
        call()
    except BigoptError as error:
        return error.exit_code
    return 0


@settings(max_examples=400, deadline=None)
@given(st.lists(_ALPHABET, max_size=40).map("".join))
@example("\ud800")
@example("'" * 3)
def test_any_text_gives_a_conf_or_a_typed_error(text: str) -> None:
    assert _code(lambda: load_text(text, "f.yml")) in (0, 2, 7)
    assert _code(lambda: load_text("", "f.yml", [f"model.l2={text}"])) in (0, 2, 7)


def _mutations(text: str) -> Any:
    cut = st.integers(0, len(text))
    return st.tuples(cut, cut, st.lists(_ALPHABET, max_size=6).map("".join)).map(
        lambda m: text[: min(m[:2])] + m[2] + text[max(m[0], min(m[1], m[0] + 20)) :]
    )


@settings(max_examples=300, deadline=None)
@given(_mutations(base_yaml()))
def test_mutations_of_base_give_a_conf_or_a_typed_error(text: str) -> None:
    assert _code(lambda: load_text(text, "f.yml")) in (0, 2, 7)


def test_recursion_is_not_used() -> None:
    limit = sys.getrecursionlimit()
    text = "data: {storage_options: " + "{a: " * (MAX_DEPTH - 3) + "1" + "}" * (MAX_DEPTH - 3) + "}"
    assert load_text(text, "x").data.storage_options["a"]
    assert sys.getrecursionlimit() == limit
