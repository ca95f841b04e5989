"""The text demo: glosses of WordNet files, from raw text to predictions in processes of their own."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bigopt.core.errors import DataError
from bigopt.data.demo_wordnet import INSTALLED, LEXICAL_FILES, PARTS, fetch_wordnet, glosses

ROOT = Path(__file__).resolve().parents[2]
LICENCE = "  1 This software and database is being provided to you\n"


def small(folder: Path) -> Path:
    """Four files of twelve synsets each."""
    folder.mkdir()
    words = {"noun": "a kind of thing", "verb": "to do something", "adj": "having a quality", "adv": "in some manner"}
    for part in PARTS:
        number = next(k for k, name in enumerate(LEXICAL_FILES) if name.startswith(part))
        lines = [
            f'0000{k:04d} {number:02d} {part[0]} 01 word{k} 0 000 | {words[part]}; "number {k}, or so"  \n'
            for k in range(12)
        ]
        (folder / f"data.{part}").write_text(LICENCE + "".join(lines))
    return folder


def test_glosses_become_a_csv(tmp_path: Path) -> None:
    path, rows = fetch_wordnet(tmp_path / "raw", installed=small(tmp_path / "wordnet"))
    assert rows == 48
    with path.open(newline="") as handle:
        table = list(csv.DictReader(handle))
    assert table[0] == {"gloss": 'a kind of thing; "number 0, or so"', "part": "noun", "lexical_file": "noun.Tops"}
    assert Counter(row["part"] for row in table) == dict.fromkeys(PARTS, 12)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = small(tmp_path / "wordnet")
    for line, found in (("00001740 03 n 01 entity 0 003\n", "no synset"), ("0 99 n 1 a | b\n", "no synset: '0 99 n")):
        (folder / "data.adj").write_text(LICENCE + line)
        with pytest.raises(DataError, match=found) as caught:
            list(glosses(folder))
        assert caught.value.where == f"{folder}/data.adj, line 2"
    (folder / "data.adj").unlink()
    with pytest.raises(DataError, match=r"no such file.*apt-get install wordnet-base"):
        list(glosses(folder))


def test_a_package_that_cannot_be_had_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="no WordNet.*apt-get install wordnet-base"):
        fetch_wordnet(tmp_path / "raw", installed=tmp_path / "nothing")


@pytest.mark.skipif(not INSTALLED.is_dir(), reason="the Debian package wordnet-base is not installed")
def test_all_of_wordnet() -> None:
    rows = list(glosses(INSTALLED))
    assert len(rows) == 117_659
    assert {row.lexical_file for row in rows} == set(LEXICAL_FILES)
    assert Counter(row.part for row in rows) == {"noun": 82_115, "verb": 13_767, "adj": 18_156, "adv": 3_621}
    assert all(row.lexical_file.startswith(row.part) for row in rows)


def bigopt(folder: Path, *command: str) -> dict[str, Any]:
    line = [sys.executable, "-m", "bigopt.cli", *command, "--json"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.slow
def test_from_text_to_predictions_in_processes_of_their_own(tmp_path: Path) -> None:
    fetch_wordnet(tmp_path / "data" / "raw", installed=small(tmp_path / "wordnet"))
    conf = str(ROOT / "conf" / "wordnet.yml")
    ingested = bigopt(tmp_path, "ingest", "-c", conf)
    assert ingested["columns"] == ["gloss#0 to gloss#262143"]
    keys = ("data.validation=null", "stop.epochs=200", "backend.name=local", "schedule.name=constant")
    trained = bigopt(tmp_path, "train", "-c", conf, *keys, "stop.target_metric={accuracy: 1.0}")
    assert trained["metrics"]["accuracy"] == 1.0
    prepared = bigopt(tmp_path, "evaluate", trained["run"], "--data", "data/primary/wordnet.zarr")
    raw = bigopt(tmp_path, "evaluate", trained["run"], "--data", "data/raw/wordnet.csv")
    assert prepared["metrics"]["accuracy"] == raw["metrics"]["accuracy"] == 1.0
    bigopt(tmp_path, "predict", trained["run"], "--data", "data/raw/wordnet.csv", "--out", "found.csv")
    with (tmp_path / "found.csv").open(newline="") as handle:
        assert [row["prediction"] for row in csv.DictReader(handle)] == ["True"] * 12 + ["False"] * 36
