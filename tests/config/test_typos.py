"""Two hundred misspelt keys and names: each is refused with exit 2, its line, its path and the right suggestion."""

from __future__ import annotations

import random

import pytest

from bigopt.config import load_text, names, values
from bigopt.core.errors import ConfError

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _typo(word: str, rng: random.Random) -> str:
    """One slip of the finger: a letter dropped, doubled, swapped with the next, or another in its place."""
    at = rng.randrange(1, len(word) - 1)
    kind = rng.choice(["drop", "double", "swap", "other"])
    if kind == "drop":
        return word[:at] + word[at + 1 :]
    if kind == "double":
        return word[:at] + word[at] + word[at:]
    if kind == "swap":
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return word[:at] + rng.choice(_LETTERS) + word[at + 1 :]


def _key_typos(count: int) -> list[tuple[str, str, str]]:
    rng = random.Random(20260101)
    groups = {group: keys for group, keys in values.groups().items() if "." not in group}
    found: list[tuple[str, str, str]] = []
    while len(found) < count:
        group = rng.choice(sorted(groups))
        key = rng.choice([k for k in groups[group] if len(k) >= 4])
        wrong = _typo(key, rng)
        if wrong not in groups[group] and (group, key, wrong) not in found:
            found.append((group, key, wrong))
    return found


def _name_typos(count: int) -> list[tuple[str, str, str]]:
    rng = random.Random(20260102)
    tables = {f"{group}.name": tuple(table) for group, table in names.GROUPS.items() if group != "backend"}
    tables |= {path: tuple(table) for path, table in names.VALUES.items() if path != "run.on_divergence"}
    found: list[tuple[str, str, str]] = []
    while len(found) < count:
        path = rng.choice(sorted(tables))
        name = rng.choice([n for n in tables[path] if len(n) >= 5])
        wrong = _typo(name, rng)
        if wrong not in tables[path] and (path, name, wrong) not in found:
            found.append((path, name, wrong))
    return found


KEYS = _key_typos(140)
GROUPS = [(g, w) for g in sorted(values.groups()) if "." not in g for w in (g[:-1], g[0] + g[2:], g + "s")]
NAMES = _name_typos(60)


def test_there_are_two_hundred() -> None:
    assert len(KEYS) + len(NAMES) >= 200
    assert len({(g, w) for g, _, w in KEYS}) > 130


@pytest.mark.parametrize(("group", "key", "wrong"), KEYS)
def test_a_misspelt_key_in_a_file(group: str, key: str, wrong: str) -> None:
    text = f"run:\n  seed: 1\n{'' if group == 'run' else group + ':'}\n  {wrong}: 1\n"
    with pytest.raises(ConfError) as caught:
        load_text(text, "my.yml")
    assert caught.value.exit_code == 2
    assert caught.value.where == "my.yml:4"
    assert caught.value.message == f"unknown key '{group}.{wrong}'"
    assert caught.value.hint == f"did you mean '{key}'?"


@pytest.mark.parametrize(("group", "key", "wrong"), KEYS[::7])
def test_a_misspelt_key_on_the_command_line(group: str, key: str, wrong: str) -> None:
    with pytest.raises(ConfError) as caught:
        load_text("", "my.yml", [f"{group}.{wrong}=1"])
    assert caught.value.where == "command line"
    assert caught.value.message == f"unknown key '{group}.{wrong}'"
    assert caught.value.hint == f"did you mean '{key}'?"


@pytest.mark.parametrize(("group", "wrong"), GROUPS)
def test_a_misspelt_group(group: str, wrong: str) -> None:
    with pytest.raises(ConfError) as caught:
        load_text(f"\n{wrong}: {{}}\n", "my.yml")
    assert caught.value.exit_code == 2
    assert caught.value.where == "my.yml:2"
    assert wrong in caught.value.message
    assert group in caught.value.hint


@pytest.mark.parametrize(("path", "name", "wrong"), NAMES)
def test_a_misspelt_name(path: str, name: str, wrong: str) -> None:
    group, _, key = path.partition(".")
    with pytest.raises(ConfError) as caught:
        load_text(f"{group}:\n\n  {key}: {wrong}\n", "my.yml")
    assert caught.value.exit_code == 2
    assert caught.value.where == "my.yml:3"
    assert caught.value.message.replace("'", "").startswith(f"{path} is {wrong}, ")
    assert caught.value.hint == f"did you mean '{name}'?"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("learning_rate: 0.1", "it is schedule.learning_rate"),
        ("optimizer: {learning_rate: 0.1}", "it is schedule.learning_rate"),
        ("optimizer.name: adam", "in a file write optimizer: {name: ...}"),
        ("model: {seed: 1}", "it is run.seed"),
        ("data: {scratch: {dir: /tmp, sise: 1GB}}", "did you mean 'size'?"),
        ("strategy: {compression: {fractoin: 0.1}}", "did you mean 'fraction'?"),
        ("stop: {target_metric: {acuracy: 0.9}}", "did you mean 'accuracy'?"),
        ("batch: {size: ful}", "did you mean 'full'?"),
        ("backend: {name: dusk}", "did you mean 'dask'?"),
        ("run: {dtype: flaot64}", "did you mean 'float64'?"),
        ("model: {init: glorot_unifrm}", "did you mean 'glorot_uniform'?"),
    ],
)
def test_where_a_key_lives(text: str, hint: str) -> None:
    with pytest.raises(ConfError) as caught:
        load_text(text, "my.yml")
    assert caught.value.where == "my.yml:1"
    assert caught.value.hint == hint
