"""The text demo: the 117,659 glosses of WordNet 3.0, each with its part of speech and lexical file.

They come from the Debian package wordnet-base (WordNet's own licence): where it is not installed, apt-get downloads it
and dpkg-deb unpacks it beside the raw data, without installing anything.
"""

from __future__ import annotations

import csv
import io
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from bigopt.core.codec import atomic_file
from bigopt.core.errors import DataError

INSTALLED: Final = Path("/usr/share/wordnet")
"""Where the Debian package puts the files."""

PACKAGE: Final = "wordnet-base"
PARTS: Final = ("noun", "verb", "adj", "adv")
LEXICAL_FILES: Final = (
    "adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact", "noun.attribute",
    "noun.body", "noun.cognition", "noun.communication", "noun.event", "noun.feeling", "noun.food", "noun.group",
    "noun.location", "noun.motive", "noun.object", "noun.person", "noun.phenomenon", "noun.plant", "noun.possession",
    "noun.process", "noun.quantity", "noun.relation", "noun.shape", "noun.state", "noun.substance", "noun.time",
    "verb.body", "verb.change", "verb.cognition", "verb.communication", "verb.competition", "verb.consumption",
    "verb.contact", "verb.creation", "verb.emotion", "verb.motion", "verb.perception", "verb.possession",
    "verb.social", "verb.stative", "verb.weather", "adj.ppl",
)  # fmt: skip
"""What the lexical file numbers 00 to 44 mean (lexnames(5WN))."""


class Gloss(NamedTuple):
    """A synset's gloss, its part of speech and lexical file."""

    gloss: str
    part: str
    lexical_file: str


def glosses(folder: Path) -> Iterator[Gloss]:
    """Yield the glosses of ``data.noun``, ``data.verb``, ``data.adj`` and ``data.adv``, in that order.

    Raises
    ------
    DataError
        For a file that is missing or damaged, naming the line.
    """
    for part in PARTS:
        path = folder / f"data.{part}"
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError as error:
            raise DataError("no such file", where=str(path), hint=f"apt-get install {PACKAGE}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot be read: {error}", where=str(path)) from error
        for number, line in enumerate(lines, start=1):
            if line.startswith("  "):  # the licence
                continue
            head, bar, text = line.partition(" | ")
            fields = head.split()
            file = int(fields[1]) if len(fields) > 2 and fields[1].isdigit() else -1
            if not bar or not text.strip() or not 0 <= file < len(LEXICAL_FILES):
                raise DataError(f"no synset: '{line[:60]}'", where=f"{path}, line {number}")
            yield Gloss(text.strip(), part, LEXICAL_FILES[file])


def fetch_wordnet(folder: Path, *, installed: Path = INSTALLED) -> tuple[Path, int]:
    """Write ``wordnet.csv`` with the columns gloss, part and lexical_file.

    Parameters
    ----------
    folder : Path
        ``data/raw``; made where it is not there.
    installed : Path
        Where the package's files are.

    Returns
    -------
    path : Path
    rows : int

    Raises
    ------
    DataError
        Where the package is neither installed nor can be downloaded, or a file is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(glosses(installed if installed.is_dir() else unpacked(folder)))
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(Gloss._fields)
    writer.writerows(rows)
    path = folder / "wordnet.csv"
    with atomic_file(path) as handle:
        handle.write(text.getvalue().encode())
    return path, len(rows)


def unpacked(folder: Path) -> Path:
    """Download the Debian package and unpack it below a folder; return where its files are."""
    home = folder.resolve() / PACKAGE
    files = home / INSTALLED.relative_to("/")
    if not files.is_dir():
        home.mkdir(exist_ok=True)
        try:
            _run(["apt-get", "download", PACKAGE], home)
            packages = sorted(home.glob(f"{PACKAGE}_*.deb"))
            if not packages:
                raise OSError("apt-get left no package")
            _run(["dpkg-deb", "-x", str(packages[-1]), str(home)], home)
        except OSError as error:
            raise DataError(f"no WordNet: {error}", where=str(home), hint=f"apt-get install {PACKAGE}") from error
    return files


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise OSError(f"{' '.join(command[:2])}: {lines[-1] if lines else done.returncode}")
