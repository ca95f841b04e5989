"""What is written: base.yml, resolved confs that read back the same, no secrets, hash and difference."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import given, settings

from bigopt.config import base_yaml, conf_hash, diff, load_conf, load_text, options, redact, to_yaml, values
from bigopt.config.output import flow
from bigopt.config.reader import read_text

ROOT = Path(__file__).resolve().parents[2]


def test_base_yml_is_the_code() -> None:
    assert (ROOT / "conf" / "base.yml").read_text(encoding="utf-8") == base_yaml()
    done = subprocess.run([sys.executable, "-m", "bigopt.config"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == base_yaml()


def test_base_yml_is_what_runs_when_a_conf_says_nothing() -> None:
    conf = load_conf([ROOT / "conf" / "base.yml"])
    assert conf.notices == ()
    assert to_yaml(conf) == to_yaml(load_conf())
    assert conf_hash(conf) == conf_hash(load_conf())


def test_base_yml_has_every_key_with_a_comment() -> None:
    lines = base_yaml().splitlines()
    assert max(map(len, lines)) <= 120
    for path in values.leaves():
        name = path.rpartition(".")[2]
        assert any(
            line.strip().startswith(f"{name}: ") and ("  # " in line or above.strip().startswith("# "))
            for above, line in itertools.pairwise(lines)
        ), path
    root = read_text(base_yaml(), "base.yml").value
    written = [f"{group}.{key}" for group, node in root.items() for key in node.value]
    assert written == list(dict.fromkeys(".".join(path.split(".")[:2]) for path in values.leaves()))


def test_a_user_of_base_yml_may_change_any_name(tmp_path: Path) -> None:
    copy = tmp_path / "mine.yml"
    copy.write_text(base_yaml())
    conf = load_conf([copy], ["optimizer.name=sgd", "schedule.name=cosine", "model.name=ridge", "backend.name=local"])
    assert conf.notices == ()
    assert conf.schedule.learning_rate == 0.01


CONFS = [
    "",
    "data: {uri: 'a b: #c', target: [y1, 'y 2'], classes: [a, 'true', '1'], memory: 1.5GB}",
    "data: {validation: 0.25, features: [a, 'b c', '1']}",
    "optimizer: {name: adamw, weight_decay: 1e-7}\nschedule: {name: cosine, period: 2.5, t_mul: 2, unit: epoch}",
    "model: {name: mlp, hidden: [], standardize: center}\nstop: {target_metric: {accuracy: 0.9}, epochs: 0.5}",
    "ingest: {source: [a.csv, b.csv], derive: {late: 'arr_delay > 15'}, encode: {c: {top: 3}}, nulls: {'*': drop}}",
    "stop: {steps: 3, seconds: 1e16}\nbatch: {size: full}",
    'data: {uri: "tab\\t\\u2028 \\U0001F600 \\\\ \\" end"}',
]


@pytest.mark.parametrize("text", CONFS)
def test_a_resolved_conf_reads_back_the_same(text: str) -> None:
    conf = load_text(text, "x")
    again = load_text(to_yaml(conf), "conf.yml")
    assert to_yaml(again) == to_yaml(conf)
    assert diff(conf, again, resume=False) == []
    assert conf_hash(again) == conf_hash(conf)
    for name in conf.__struct_fields__:
        if name not in ("origins", "notices"):
            assert getattr(again, name) == getattr(conf, name)


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
_LEAF = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT
)
_TREE = st.recursive(_LEAF, lambda t: st.lists(t, max_size=3) | st.dictionaries(_TEXT, t, max_size=3), max_leaves=8)


@settings(max_examples=300, deadline=None)
@given(_TREE)
def test_any_value_is_written_and_read_back(value: object) -> None:
    assert read_text(f"a: {flow(value)}", "x").plain() == {"a": value}


@settings(max_examples=100, deadline=None)
@given(_TEXT)
def test_text_is_the_same_to_pyyaml(text: str) -> None:
    written = flow(text)
    assert yaml.safe_load(f"a: {written}") == {"a": text} or not written.startswith('"')


SECRETS = {
    "key": "CANARY1", "secret": "CANARY2", "token": "CANARY3", "password": "CANARY4", "api_key": "CANARY5",
    "passphrase": "CANARY6", "connection_string": "AccountKey=CANARY7", "private_key": "CANARY8",
    "client_kwargs": {"aws_secret_access_key": "CANARY9", "endpoint_url": "https://me:CANARY10@host/x"},
    "headers": {"Authorization": "Bearer CANARY11"}, "anon": False, "endpoint_url": "http://u:CANARY12@h:9000",
    "list": ["CANARY13"],
}  # fmt: skip


def test_no_secret_is_written() -> None:
    uris = "uri: 'https://me:CANARY14@host/a.zarr', validation: 's3://k:CANARY15@b/v'"
    text = f"data: {{{uris}, storage_options: {flow(SECRETS)}}}"
    conf = load_text(text, "x")
    assert conf.data.storage_options == SECRETS
    written = to_yaml(conf)
    assert "CANARY" not in written
    assert "https://host/a.zarr" in written
    assert "CANARY" not in " ".join(map(str, diff(conf, load_text("", "x"), resume=False)))
    kept = load_text(written, "conf.yml").data.storage_options
    assert kept == {"client_kwargs": {"endpoint_url": "https://host/x"}, "anon": False, "endpoint_url": "http://h:9000"}
    assert conf_hash(conf) == conf_hash(load_text(written, "conf.yml"))
    assert redact("s3://a:b@c/d and http://x") == "s3://c/d and http://x"


def test_hash_follows_what_matters() -> None:
    base = conf_hash(load_text("", "x"))
    for text in ("backend: {workers: 3}", "stop: {epochs: 9}", "checkpoint: {keep: 1}", "run: {bits: any}"):
        assert conf_hash(load_text(text, "x")) == base
    for text in ("model: {l2: 1}", "run: {seed: 1}", "data: {uri: a}", "batch: {size: 3}", "optimizer: {name: sgd}"):
        assert conf_hash(load_text(text, "x")) != base
    assert conf_hash(load_text("schedule: {learning_rate: 1e-3}", "x")) == base


def test_difference() -> None:
    old, new = load_text("", "x"), load_text("model: {l2: 0.5, hidden: [3]}\nstop: {epochs: 9}", "x")
    assert [str(d) for d in diff(old, new)] == ["model.hidden: [128] -> [3]", "model.l2: 0.0 -> 0.5"]
    assert [d.key for d in diff(old, new, resume=False)] == ["model.hidden", "model.l2", "stop.epochs"]
    assert diff(old, old) == []


def test_options_are_all_keys() -> None:
    rows = {o.key: o for o in options()}
    assert list(rows) == list(values.leaves())
    assert rows["data.memory"].default == "2GB"
    assert rows["data.memory"].value == 2 * 10**9
    assert rows["optimizer.name"].takes == "a name"
    assert rows["batch.size"].takes == "an integer >= 1, 'full' or null"
    assert all(o.comment for o in rows.values())
