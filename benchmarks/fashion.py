"""Runs on Fashion-MNIST that are kept: what a proof over many cases and seeds is made of, a few runs at a time.

A proof is a list of **runs**, named by part, case and seed. Each one is trained once and kept in a JSON file as soon as
it is done; a table is made of what the file holds. So a long proof may be cut at any point, go on with the same command
(``--runs N``: at most so many new ones in this call, exit status 3 where more are left), or be confined to some cases.
What is kept says which keys and which sources of bigopt it was made from; where they are others it is made again, so
that no old figure is shown as a new one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

import bigopt
from bigopt.config import load_conf
from bigopt.core.errors import ConfError
from bigopt.facts import Datasets, open_data
from bigopt.fit import train

PARTITIONS: Final = 8
CENTRED: Final = ("data.task=classification", "model.standardize=center", "batch.size=128", "backend.workers=2")
MLP: Final = (
    *(*CENTRED, "model.name=mlp", "model.hidden=[128]", "model.activation=relu", "schedule.name=cosine"),
    *("stop.epochs=5", "checkpoint.every_seconds=null"),
)
LEFT: Final = 3
"""Exit status where runs are left to do."""


class Row(NamedTuple):
    """A line of a table: what it says of a case, and whether its bar is reached (None: reported only)."""

    cells: tuple[str, ...]
    reached: bool | None


def options(about: str) -> argparse.ArgumentParser:
    """Return the options that all proofs have."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", metavar="NAME", default=[], help="beginnings of names")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--backend", choices=("local", "dask", "spark"), default="local")
    parser.add_argument("--address", help="of a cluster: a Dask scheduler, or a Spark master such as local[2]")
    parser.add_argument(
        "--runs", type=int, metavar="N", help="train at most N runs in this call, then say what is left"
    )
    parser.add_argument("--data", type=Path, default=Path("data/raw"), help="folder of the images (%(default)s)")
    parser.add_argument("--rows", type=int, help="of the training images, to try it out; the bars mean nothing then")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"), help="folder of what is kept")
    return parser


def store(images: Path, rows: int | None, out: Path) -> str:
    """Return where images lie as Zarr, float32 in [0, 1]; written by the first call."""
    from bigopt.data.writer import DatasetWriter

    path = out / f"{images.stem}-{rows or 'all'}.zarr"
    if path.exists():
        return str(path)
    with np.load(images) as arrays:
        X, y = arrays["X"][:rows].astype(np.float32) / np.float32(255), arrays["y"][:rows].astype(np.int64)
    names = [f"x{i}" for i in range(X.shape[1])]
    cuts = np.diff(np.linspace(0, len(X), PARTITIONS + 1).astype(int)).tolist()
    out.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.stem}.{os.getpid()}.zarr")
    with DatasetWriter(str(fresh), format="zarr", columns=names, target=["y"], partition_rows=cuts) as writer:
        writer.append(X, y)
    fresh.rename(path)
    return str(path)


def merged(*layers: Sequence[str]) -> list[str]:
    """Return the keys of layers of ``key=value``, later ones over earlier ones."""
    return [f"{k}={v}" for k, v in dict(key.split("=", 1) for layer in layers for key in layer).items()]


def sources() -> str:
    """Return a digest of bigopt's own source files."""
    digest, root = hashlib.sha256(), Path(bigopt.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


class Runs:
    """The runs of a proof: those that are kept, and new ones.

    Parameters
    ----------
    name : str
        Of the proof: begins the name of its file.
    chosen : Namespace
        What `options` read.
    """

    def __init__(self, name: str, chosen: argparse.Namespace) -> None:
        self.train = store(chosen.data / "fashion_mnist_train.npz", chosen.rows, chosen.out / "data")
        self.test = store(chosen.data / "fashion_mnist_test.npz", None, chosen.out / "data")
        where = chosen.backend if chosen.address is None else f"{chosen.backend}-{chosen.address}"
        tried = "" if chosen.rows is None else f"-{chosen.rows}"
        clean = "".join(c if c.isalnum() or c in "-." else "_" for c in where)
        self.file = chosen.out / f"{name}-{clean}{tried}.json"
        self._sources = sources()
        self._kept: dict[str, dict[str, Any]] = json.loads(self.file.read_text()) if self.file.exists() else {}
        self._where = [f"data.uri={self.train}", f"backend.name={chosen.backend}", f"run.dir={chosen.out / 'runs'}"]
        self._where += [] if chosen.address is None else [f"backend.address={chosen.address}"]
        self._opened: dict[tuple[str | None, str | None], Datasets] = {}
        self._left = chosen.runs
        self.wanting = 0
        self.refused: dict[str, str] = {}

    def __call__(self, name: str, seed: int, keys: Sequence[str]) -> dict[str, Any] | None:
        """Return a run, trained now where it is not kept; None where this call may train no more."""
        run, keys = f"{name}/{seed}", merged(self._where, keys, (f"run.seed={seed}",))
        made_from = {"sources": self._sources, "keys": keys}
        kept = self._kept.get(run, {})
        if any(kept.get(key) != value for key, value in made_from.items()):
            if self._left is not None and self._left <= 0:
                self.wanting += 1
                return None
            try:
                found = self._trained(keys) | made_from
            except ConfError as error:
                self.refused[name] = str(error)
                return None
            self._left = None if self._left is None else self._left - 1
            self.keep(run, found)
        return self._kept[run]

    def keep(self, run: str, found: dict[str, Any]) -> None:
        """Keep a run in the file."""
        self._kept = (json.loads(self.file.read_text()) if self.file.exists() else {}) | {run: found}
        fresh = self.file.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(self._kept, indent=1, sort_keys=True) + "\n")
        fresh.replace(self.file)

    def _trained(self, keys: list[str]) -> dict[str, Any]:
        conf = load_conf([], keys)
        which = conf.data.uri, conf.data.validation
        if which not in self._opened:
            self._opened[which] = open_data(conf)
        result = train(conf, data=self._opened[which])
        told = json.loads((Path(result["run"]) / "result.json").read_text())
        kept = {key: result[key] for key in ("loss", "steps", "seconds", "params_sha256")}
        return kept | {"accuracy": result["metrics"]["accuracy"], "ledger": told["ledger"]}

    def table(self, title: Sequence[str], rows: Sequence[Row]) -> str:
        """Print a table and write it beside the file; return it."""
        lines = [f"| {' | '.join([*title, ''])} |", "|" + "---|" * (len(title) + 1)]
        said = {None: "", True: "reached", False: "**missed**"}
        lines += [f"| {' | '.join([*row.cells, said[row.reached]])} |" for row in rows]
        text = "\n".join(lines)
        print(text, flush=True)
        for name, why in self.refused.items():
            print(f"{name}: refused: {why}", flush=True)
        return text

    def status(self, rows: Sequence[Row], text: str) -> int:
        """Write the tables beside the file; return the exit status: bars missed, runs left, or none of it."""
        self.file.with_suffix(".md").write_text(text + "\n")
        if self.wanting:
            print(f"{self.wanting} runs are left; the same command goes on")
            return LEFT
        return int(bool(self.refused) or any(row.reached is False for row in rows))
