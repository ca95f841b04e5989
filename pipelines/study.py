"""Run studies: the examples and case studies of conf/studies, each to a picture and its numbers as CSV.

::

    python pipelines/study.py example_4_1                 the same as: make study NAME=example_4_1
    python pipelines/study.py --all                       the same as: make studies
    python pipelines/study.py example_4_1 schedule.learning_rate=0.9     what if?
"""

import argparse
import csv
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bigopt.core.errors import BigoptError, ConfError  # noqa: E402
from bigopt.core.names import nearest  # noqa: E402
from bigopt.studies.gallery import Study, read_gallery  # noqa: E402

GALLERY = ROOT / "conf" / "studies" / "gallery.yml"


def perform(study: Study, out: Path, overrides: list[str]) -> Path:
    """Run one study, draw it and return the picture's path."""
    from bigopt.studies.record import run_study

    try:
        from bigopt.studies.pictures import draw
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise ConfError("studies draw pictures", hint="pip install 'bigopt[plots]'") from None
    folder = out / study.name
    return draw(run_study(study, folder, overrides), folder)


def table(path: Path) -> str:
    """Lay a small CSV out for people, six digits a number."""

    def short(cell: str) -> str:
        try:
            return f"{float(cell):.6g}"
        except ValueError:
            return cell

    with path.open(encoding="utf-8", newline="") as handle:
        cells = [[short(cell) for cell in row] for row in csv.reader(handle)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  " + "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def main() -> None:
    """Read the command line and run what it names."""
    studies = read_gallery(GALLERY)
    known = "\n".join(f"  {s.name:<15} {s.title}" for s in studies.values())
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=f"studies:\n{known}"
    )
    parser.add_argument("names", nargs="*", metavar="NAME|key=value", help="studies, and keys of all their runs")
    parser.add_argument("--all", action="store_true", help="all studies")
    parser.add_argument("--out", type=Path, default=Path("data/runs/studies"), help="default: %(default)s")
    args = parser.parse_intermixed_args()
    overrides = [name for name in args.names if "=" in name]
    names = list(studies) if args.all else [name for name in args.names if "=" not in name]
    for name in names:
        if name not in studies:
            raise ConfError(f"unknown study '{name}'", hint=nearest(name, studies))
    if not names:
        raise ConfError("which study?", hint=f"one of {', '.join(studies)}, or --all")
    for name in names:
        begin = time.perf_counter()
        picture = perform(studies[name], args.out, overrides)
        print(f"{name}: {studies[name].title} ({time.perf_counter() - begin:.1f} s)")
        print(table(picture.parent / "summary.csv"))
        print(f"  picture and tables: {picture.parent}\n", flush=True)


if __name__ == "__main__":
    try:
        main()
    except BigoptError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
