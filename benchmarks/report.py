"""What comes out: a table for the terminal and in Markdown, JSON with machine and versions, pictures."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.harness import Outcome, RowResult

_MARKS = {"reached": "yes", "close": "no (within the spread)", "not reached": "no", "skipped": "skipped", "": ""}


def number(value: float) -> str:
    """Return a number in three digits, without an exponent where it needs none."""
    return f"{value:.3g}" if abs(value) < 1e3 and (abs(value) >= 1e-3 or value == 0) else f"{value:.2e}"


def cells(outcome: Outcome) -> tuple[str, str, str, str, str]:
    """Return figure, bar, median, quartiles and verdict of an outcome as text."""
    bar = "" if outcome.bar is None else f"{outcome.bar} {outcome.unit}".strip()
    if outcome.spread is None:
        return outcome.label, bar, "", outcome.reason, _MARKS["skipped"]
    s = outcome.spread
    middle = f"{number(s.median)} {outcome.unit}".strip()
    return outcome.label, bar, middle, f"{number(s.low)} .. {number(s.high)} ({s.rounds})", _MARKS[outcome.verdict]


def terminal(results: Sequence[RowResult]) -> str:
    """Return the table as aligned text."""
    lines = []
    for result in results:
        lines.append(f"\n{result.title}  [{result.name}, {result.seconds:.0f} s]")
        rows = [cells(outcome) for outcome in result.outcomes]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(5)]
        for label, bar, middle, quartiles, verdict in rows:
            lines.append(
                f"  {label:<{widths[0]}}  {bar:>{widths[1]}}  {middle:>{widths[2]}}  "
                f"{quartiles:<{widths[3]}}  {verdict}".rstrip()
            )
    lines.append(f"\n{verdict_line(results)}")
    return "\n".join(lines)


def verdict_line(results: Sequence[RowResult]) -> str:
    """Say how many rows reach every bar."""
    barred = [r for r in results if r.barred]
    reached = [r.name for r in barred if r.reached]
    rest = [r.name for r in barred if not r.reached]
    return f"{len(reached)} of {len(barred)} rows reach every bar" + (f"; not: {', '.join(rest)}" if rest else "")


def markdown(results: Sequence[RowResult], about: dict[str, Any]) -> str:
    """Return the table in Markdown, with notes, and a profile where a bar is missed."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        f"{about['time']}: {about['processor']}, {about['cores']} cores, {about['memory_gb']} GB, {about['java']}.",
        f"{versions}; compiled kernels: {about['kernels']}.",
        "",
        "Median of the rounds' figures, quartiles, and number of rounds.",
        "",
        "| row | figure | bar | median | quartiles (rounds) | reached |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        for i, outcome in enumerate(result.outcomes):
            name = f"**{result.name}**: {result.title}" if i == 0 else ""
            lines.append(f"| {name} | {' | '.join(cells(outcome))} |")
    lines += ["", f"{verdict_line(results)}.", "", "## Notes", ""]
    for result in results:
        took = ", ".join(f"{name} {seconds:.0f}" for name, seconds in result.parts.items())
        lines.append(f"- {result.name}: {result.seconds:.0f} s{f' ({took})' if took else ''}")
        lines += [f"- {result.name}: {note}" for note in result.notes]
    for result in results:
        if result.profile:
            lines += ["", f"## Where the time goes: {result.name}", ""]
            lines += _profile(result.profile)
    return "\n".join(lines) + "\n"


def _profile(profile: dict[str, Any]) -> list[str]:
    lines = [f"One run of {profile['seconds']:.3g} s; shares of the looks at each kind of thread, every 2 ms:"]
    for thread, places in profile["threads"].items():
        cpu = profile.get("cpu", {}).get(thread, 0.0)
        lines += ["", f"`{thread}` ({cpu:.3g} s of CPU time)", "", "| share | where |", "|---|---|"]
        lines += [f"| {share:.0%} | `{place}` |" for place, share in places.items()]
    return lines


def about() -> dict[str, Any]:
    """Return when, on what and with what this was measured."""
    from bigopt.core import compiled

    kernels = compiled.missing() or compiled.identity(compiled.COMPILED)
    return {"time": time.strftime("%Y-%m-%d %H:%M:%S"), **machine.describe(), "kernels": kernels}


def as_json(results: Sequence[RowResult], about: dict[str, Any]) -> str:
    """Return everything that was measured, every round's figures too."""
    rows = [
        {
            "row": r.name,
            "title": r.title,
            "seconds": round(r.seconds, 1),
            "parts": {name: round(seconds, 1) for name, seconds in r.parts.items()},
            "reached": r.reached,
            "figures": [
                {
                    "figure": o.label,
                    "unit": o.unit,
                    "bar": None if o.bar is None else str(o.bar),
                    "verdict": o.verdict,
                    "median": None if o.spread is None else o.spread.median,
                    "quartiles": None if o.spread is None else [o.spread.low, o.spread.high],
                    "rounds": o.values,
                    "reason": o.reason,
                }
                for o in r.outcomes
            ],
            "sides": r.sides,
            "notes": r.notes,
            "profile": r.profile,
        }
        for r in results
    ]
    return json.dumps({"about": about, "rows": rows}, indent=1, allow_nan=True)


def picture(results: Sequence[RowResult], path: Path) -> None:
    """Draw each figure that has a bar, over its bar: 1 is the bar, right of it is better, the line is the quartiles."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [
        (result.name, outcome)
        for result in results
        for outcome in result.outcomes
        if outcome.bar is not None and outcome.spread is not None and outcome.unit in ("x", "")
    ]
    if not shown:
        return
    figure, axes = plt.subplots(figsize=(9, 0.8 + 0.33 * len(shown)), layout="constrained")
    for place, (_, outcome) in enumerate(reversed(shown)):
        assert outcome.bar is not None
        assert outcome.spread is not None
        parts = [outcome.spread.low, outcome.spread.median, outcome.spread.high]
        if outcome.bar.kind == "at most":
            scores = sorted(outcome.bar.value / max(v, 1e-12) for v in parts)
        else:
            scores = [v / outcome.bar.value for v in parts]
        color = {"reached": "#1b7f4b", "close": "#c98a00"}.get(outcome.verdict, "#b3261e")
        axes.plot([scores[0], scores[2]], [place, place], color=color, linewidth=4, alpha=0.35, solid_capstyle="butt")
        axes.plot(scores[1], place, "o", color=color, markersize=6)
    axes.axvline(1.0, color="0.2", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(
        range(len(shown)), [f"{name}: {outcome.label} ({outcome.bar})" for name, outcome in reversed(shown)], fontsize=8
    )
    axes.set_xlabel("over the bar (1 is the bar; right is better; line: quartiles of the rounds)")
    axes.grid(axis="x", which="both", alpha=0.25)
    figure.savefig(path)
    plt.close(figure)


def write(results: Sequence[RowResult], folder: Path, about: dict[str, Any]) -> list[Path]:
    """Write JSON, Markdown and pictures; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(as_json(results, about))
    (folder / "results.md").write_text(markdown(results, about))
    paths = [folder / "results.json", folder / "results.md"]
    for suffix in ("svg", "png"):
        path = folder / f"results.{suffix}"
        try:
            picture(results, path)
        except ImportError:
            break
        if path.exists():
            paths.append(path)
    return paths
