"""The whole way for one conf: fetch, ingest, train, evaluate, and say what came out (`make run`, `make pipeline`).

What is there already is not made again. Each step is a command that is printed before it runs, so that the output
teaches how to go on by hand; the first step that fails ends it with its exit status.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from bigopt.config import load_conf
from bigopt.core.errors import BigoptError

ROOT = Path(__file__).resolve().parents[1]
BIGOPT = ".venv/bin/bigopt"


def shown(command: list[str]) -> None:
    print(f"\n$ {shlex.join(command)}", file=sys.stderr, flush=True)


def program(command: list[str]) -> list[str]:
    """The command with this interpreter in front: scripts of an environment do not run where its path has a space."""
    if command[0] == BIGOPT:
        return [sys.executable, "-m", "bigopt.cli", *command[1:]]
    return [sys.executable, *command[1:]]


def do(command: list[str]) -> None:
    """Run a step; leave with its status where it fails."""
    shown(command)
    status = subprocess.run(program(command), cwd=ROOT, check=False).returncode
    if status:
        sys.exit(status)


def ask(command: list[str]) -> dict[str, Any]:
    """Run a step and return the JSON object it prints."""
    shown(command)
    done = subprocess.run(program([*command, "--json"]), cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print(done.stdout, end="", file=sys.stderr)
        sys.exit(done.returncode)
    return dict(json.loads(done.stdout))


def fetcher(conf: Path) -> Path | None:
    """Return ``pipelines/fetch_NAME.py`` with the longest NAME that the conf's name starts with."""
    scripts = {path.stem.removeprefix("fetch_"): path for path in (ROOT / "pipelines").glob("fetch_*.py")}
    fitting = [name for name in scripts if conf.stem.startswith(name)]
    return scripts[max(fitting, key=len)].relative_to(ROOT) if fitting else None


def numbers(metrics: dict[str, Any]) -> str:
    plain = {k: v for k, v in metrics.items() if isinstance(v, (int, float))}
    return "  ".join(f"{name} {value:.4f}" for name, value in plain.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conf", type=Path, help="for example conf/flights.yml")
    parser.add_argument(
        "--backend", choices=("local", "dask", "spark"), help="through pipelines/train.py on that engine"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for bigopt train")
    args = parser.parse_args()
    overrides = [*args.overrides, *([f"backend.name={args.backend}"] if args.backend else [])]
    conf = load_conf([args.conf], overrides)
    uri = conf.data.uri
    if uri is None:
        parser.error(f"{args.conf} has no data.uri")

    if "://" not in uri and not (ROOT / uri).exists():
        if fetch := fetcher(args.conf):
            do([".venv/bin/python", str(fetch)])
        do([BIGOPT, "ingest", "-c", str(args.conf), *args.overrides])

    train = [".venv/bin/python", "pipelines/train.py"] if args.backend else [BIGOPT, "train"]
    result = ask([*train, "-c", str(args.conf), *overrides])
    run = Path(result["run"])
    evaluated = ask([BIGOPT, "evaluate", str(run), "--data", uri])
    cost = f"{result['steps']} steps, {result['epochs']:g} epochs, {result['seconds']:.1f} s"
    rows = "training rows" if conf.data.validation is None else "held-out rows"
    facts = {
        "run": str(run),
        "trained": f"{cost}, loss {result['loss']:.6g}",
        rows: numbers(result["metrics"]),
        f"all {evaluated['rows']} rows": numbers(evaluated["metrics"]),
        "params": f"sha256 {result['params_sha256']}",
        "pictures": "  ".join(str(p) for p in sorted([*run.glob("*.svg"), *run.glob("*.png")])) or "none",
    }
    width = max(map(len, facts))
    print()
    print("\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()))


if __name__ == "__main__":
    try:
        main()
    except BigoptError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
