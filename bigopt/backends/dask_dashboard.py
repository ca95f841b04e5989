"""A page about the run on the Dask dashboard, beside Status and Workers.

Dask's task stream shows one long task a worker and nothing of the rounds, which go through the channel; this page shows
what the driver reports instead: step, epoch and loss, the loss curve, and for every slot its worker, its round and the
partitions it works on. It only reads the scheduler's events (`bigopt.backends.dask_report`), so it can be opened at any
time, by many people, during and after a run.

`register` adds it to a scheduler that starts in this process later. For a cluster of one's own::

    dask scheduler --preload bigopt.backends.dask_dashboard
"""

from __future__ import annotations

import html
import time
from collections.abc import Iterable
from typing import Any

from bigopt.backends.dask_report import CURVE_TOPIC, PAGE_TOPIC, TOPIC

ROUTE = "/bigopt"

_REFRESH_MS = 500
_SILENT_SECONDS = 10.0
_BLUE, _ORANGE, _GREEN, _GREY = "#2f6db5", "#e8833a", "#3f9d6b", "#b9c0c7"
_STATE = {"busy": _ORANGE, "idle": "#8fb3dc", "gone": _GREY}
_STYLE = """
<style>
.bo { font-family: "Helvetica Neue", Helvetica, Arial, sans-serif; color: #2b3138; }
.bo h1 { font-size: 20px; font-weight: 600; margin: 4px 0 12px; }
.bo .pill { font-size: 12px; font-weight: 600; color: #fff; border-radius: 10px; padding: 3px 10px; margin-left: 10px;
  vertical-align: 3px; }
.bo .tiles { display: flex; flex-wrap: wrap; gap: 10px; }
.bo .tile { background: #f5f7f9; border: 1px solid #e3e8ec; border-radius: 8px; padding: 8px 14px; min-width: 92px; }
.bo .tile b { display: block; font-size: 20px; font-weight: 600; font-variant-numeric: tabular-nums; }
.bo .tile span { font-size: 11px; color: #68727c; letter-spacing: .04em; text-transform: uppercase; }
.bo table { border-collapse: collapse; width: 100%; font-size: 13px; }
.bo th { text-align: left; color: #68727c; font-size: 11px; letter-spacing: .04em; text-transform: uppercase;
  font-weight: 600; padding: 6px 14px 6px 0; border-bottom: 1px solid #d5dbe0; }
.bo td { padding: 6px 14px 6px 0; border-bottom: 1px solid #edf0f2; font-variant-numeric: tabular-nums; }
.bo th, .bo td { white-space: nowrap; }
.bo .n { text-align: right; }
.bo .dot { display: inline-block; width: 9px; height: 9px; border-radius: 5px; margin-right: 7px; }
.bo .empty { color: #68727c; font-size: 15px; padding: 30px 0; }
</style>
"""


def register() -> None:
    """Add the page and its entry in the menu to every scheduler that starts in this process; safe to repeat."""
    from distributed.dashboard import scheduler as dashboard

    if ROUTE in dashboard.applications:
        return
    dashboard.applications[ROUTE] = page
    menu = dashboard.template_variables

    def with_entry(scheduler: Any) -> dict[str, Any]:
        variables: dict[str, Any] = dict(menu(scheduler))
        variables["pages"] = [*variables["pages"][:1], ROUTE.strip("/"), *variables["pages"][1:]]
        return variables

    dashboard.template_variables = with_entry


def dask_setup(scheduler: Any) -> None:
    """Hook of ``dask scheduler --preload``: add the page before the dashboard starts."""
    register()
    scheduler.log_event(PAGE_TOPIC, ROUTE)


def page(scheduler: Any, extra: dict[str, Any], doc: Any) -> None:
    """Fill a Bokeh document (called by the dashboard for every visitor)."""
    from distributed.dashboard.components.scheduler import BOKEH_THEME, env

    view = _View(scheduler)
    view.update()
    doc.add_periodic_callback(view.update, _REFRESH_MS)
    doc.title = "bigopt"
    doc.add_root(view.root)
    doc.template = env.get_template("simple.html")
    doc.template_variables.update(extra)
    doc.theme = BOKEH_THEME


class _View:
    """One visitor's page."""

    def __init__(self, scheduler: Any) -> None:
        from bokeh.layouts import column, row
        from bokeh.models import ColumnDataSource, Div, Select

        self._scheduler = scheduler
        self._curve = ColumnDataSource({"step": [], "loss": [], "smooth": []})
        self._validation = ColumnDataSource({"step": [], "loss": []})
        self._slots = ColumnDataSource({name: [] for name in _RANGE_COLUMNS})
        self._shown: dict[Any, str] = {}
        self._choice = Select(title="run", value="", options=[], visible=False, width=320)
        self._head = Div(sizing_mode="stretch_width")
        self._table = Div(sizing_mode="stretch_width")
        self._ranges = _ranges_figure(self._slots)
        curves = _curve_tabs(self._curve, self._validation)
        wide = {"sizing_mode": "stretch_width"}
        self.root = column(
            self._choice,
            self._head,
            row(curves, column(self._table, self._ranges, **wide), spacing=36, **wide),
            spacing=18,
            margin=(14, 24, 14, 24),
            **wide,
        )

    def update(self) -> None:
        """Show the newest events."""
        newest = {event["run"]: (at, event) for at, event in self._scheduler.get_events(TOPIC)}
        if not newest:
            self._set(self._head, f"{_STYLE}<div class='bo'><h1>bigopt</h1><div class='empty'>no run yet</div></div>")
            return
        names = sorted(newest, key=lambda name: newest[name][1]["begin"], reverse=True)
        if self._choice.options != names:
            self._choice.update(options=names, visible=len(names) > 1)
        if self._choice.value not in names:
            self._choice.value = names[0]
        run = self._choice.value
        at, event = newest[run]
        self._set(self._head, _STYLE + _head(event, time.time() - at))
        self._set(self._table, _STYLE + _table(event["slots"]))
        self._update_ranges(event["slots"])
        self._update_curve(run, event)

    def _set(self, div: Any, text: str) -> None:
        if self._shown.get(div.id) != text:
            self._shown[div.id] = div.text = text

    def _update_ranges(self, slots: list[dict[str, Any]]) -> None:
        known = [s for s in slots if s["first"] is not None]
        names = [f"slot {s['slot']}" for s in slots]
        if list(self._ranges.y_range.factors) != names[::-1]:
            self._ranges.y_range.factors = names[::-1]
            self._ranges.height = 70 + 30 * max(1, len(names))
        self._ranges.visible = bool(known)
        self._ranges.x_range.end = max((s["partitions"] for s in known), default=1)
        rows = [_range_row(s) for s in known]
        self._slots.data = {name: [row[i] for row in rows] for i, name in enumerate(_RANGE_COLUMNS)}

    def _update_curve(self, run: str, event: dict[str, Any]) -> None:
        points = [
            p for _, kept in self._scheduler.get_events(CURVE_TOPIC) if kept["run"] == run for p in kept["points"]
        ]
        record = event["record"]
        if record.get("loss") is not None and (not points or points[-1][0] != record["step"]):
            points.append([record["step"], record["loss"], None])
        steps = [p[0] for p in points]
        if steps != list(self._curve.data["step"]):
            losses = [p[1] for p in points]
            self._curve.data = {"step": steps, "loss": losses, "smooth": _smooth(losses)}
            marks = [p for p in points if p[2] is not None]
            self._validation.data = {"step": [p[0] for p in marks], "loss": [p[2] for p in marks]}


def _curve_tabs(curve: Any, validation: Any) -> Any:
    from bokeh.models import HoverTool, TabPanel, Tabs
    from bokeh.plotting import figure

    panels = []
    for scale in ("linear", "log"):
        plot = figure(
            height=380,
            y_axis_type=scale,
            x_axis_label="step",
            y_axis_label="loss",
            tools="pan,wheel_zoom,box_zoom,reset,save",
            sizing_mode="stretch_width",
        )
        plot.line("step", "loss", source=curve, color=_BLUE, line_alpha=0.3, legend_label="training batches")
        line = plot.line("step", "smooth", source=curve, color=_BLUE, line_width=2.5, legend_label="smoothed")
        dots = {"size": 9, "color": _GREEN, "marker": "circle", "line_color": "white"}
        plot.scatter("step", "loss", source=validation, legend_label="validation", **dots)
        plot.add_tools(HoverTool(renderers=[line], tooltips=[("step", "@step{0,0}"), ("loss", "@loss{0.000000}")]))
        plot.legend.border_line_color = None
        plot.legend.background_fill_alpha = 0.6
        _plain(plot)
        panels.append(TabPanel(child=plot, title=f"loss, {scale} scale"))
    return Tabs(tabs=panels, sizing_mode="stretch_width", min_width=420)


def _ranges_figure(slots: Any) -> Any:
    from bokeh.models import FactorRange, Range1d
    from bokeh.plotting import figure

    plot = figure(
        height=120,
        y_range=FactorRange(),
        x_range=Range1d(0, 1),
        x_axis_label="partitions of each slot's newest order (orange: at work on it)",
        tools="",
        toolbar_location=None,
        sizing_mode="stretch_width",
    )
    plot.hbar(y="slot", left="first", right="stop", height=0.62, color="color", line_color="white", source=slots)
    plot.text(
        x="at",
        y="slot",
        text="text",
        text_align="align",
        x_offset="offset",
        text_baseline="middle",
        text_color="#2b3138",
        text_font_size="12px",
        source=slots,
    )
    plot.ygrid.visible = False
    _plain(plot)
    return plot


def _plain(plot: Any) -> None:
    plot.outline_line_color = None
    plot.grid.grid_line_color = "#e9edf0"
    plot.axis.axis_line_color = "#b9c0c7"
    plot.axis.major_tick_line_color = "#b9c0c7"
    plot.axis.minor_tick_line_color = None
    plot.axis.axis_label_text_font_style = "normal"
    plot.axis.axis_label_text_color = "#68727c"


def _head(event: dict[str, Any], age: float) -> str:
    state, color = event["state"], {"running": _GREEN, "preparing": _ORANGE, "ended": _GREY}[event["state"]]
    if state != "ended" and age > _SILENT_SECONDS:
        state, color = f"silent for {_duration(age)}", _GREY
    record = event["record"]
    tiles = [
        ("step", _count(record.get("step"))),
        ("epoch", _number(record.get("epoch"), "{:.2f}")),
        ("round", _count(record.get("round"))),
        ("loss", _number(record.get("loss"), "{:.5g}")),
        ("gradient norm", _number(record.get("grad_norm"), "{:.3g}")),
        ("learning rate", _number(record.get("learning_rate"), "{:.3g}")),
        ("rows/s", _rate(record)),
        ("running for", _duration(record.get("seconds"))),
    ]
    metrics = event["validation"]
    for name in sorted(metrics.keys() - {"loss"} or metrics):  # the loss stands in the curve
        tiles.append((f"validation {name.replace('_', ' ')}", _number(metrics[name], "{:.4g}")))
    cells = "".join(
        f"<div class='tile' data-name='{html.escape(name)}'><span>{html.escape(name)}</span><b>{text}</b></div>"
        for name, text in tiles
    )
    pill = f"<span class='pill' style='background:{color}'>{html.escape(state)}</span>"
    return f"<div class='bo'><h1>{html.escape(event['run'])}{pill}</h1><div class='tiles'>{cells}</div></div>"


def _table(slots: Iterable[dict[str, Any]]) -> str:
    rows = "".join(_row(s) for s in slots)
    if not rows:
        return ""
    head = "".join(f"<th class='{c}'>{t}</th>" for c, t in _COLUMNS)
    return f"<div class='bo'><table><tr>{head}</tr>{rows}</table></div>"


_COLUMNS = (
    ("", "slot"),
    ("", "worker"),
    ("", "state"),
    ("n", "round"),
    ("n", "partitions"),
    ("n", "seconds"),
    ("n", "orders"),
    ("n", "memory"),
)


def _row(slot: dict[str, Any]) -> str:
    dot = f"<span class='dot' style='background:{_STATE[slot['state']]}'></span>"
    who = f"{slot['worker'].split('://')[-1]}, pid {slot['pid']}" if slot["worker"] else "waiting for a worker"
    cells = [
        str(slot["slot"]),
        html.escape(who),
        dot + slot["state"],
        _count(slot["round"]),
        "–" if slot["first"] is None else _range(slot),
        _number(slot.get("seconds"), "{:.3f}"),
        _count(slot.get("orders")),
        f"{slot['rss'] / 1e6:,.0f} MB" if slot.get("rss") else "–",
    ]
    return "<tr>" + "".join(f"<td class='{c}'>{t}</td>" for (c, _), t in zip(_COLUMNS, cells, strict=True)) + "</tr>"


def _range(slot: dict[str, Any]) -> str:
    return str(slot["first"]) if slot["first"] == slot["last"] else f"{slot['first']} … {slot['last']}"


_RANGE_COLUMNS = ("slot", "first", "stop", "color", "text", "at", "align", "offset")


def _range_row(slot: dict[str, Any]) -> tuple[Any, ...]:
    """Return a bar and its label, inside a long bar and beside a short one."""
    first, stop = slot["first"], slot["last"] + 1
    text = f"round {slot['round']:,}, {'partition' if stop - first == 1 else 'partitions'} {_range(slot)}"
    if stop - first > 0.6 * slot["partitions"]:
        place: tuple[Any, ...] = (first, "left", 8)
    elif first + stop < slot["partitions"]:
        place = (stop, "left", 6)
    else:
        place = (first, "right", -6)
    return f"slot {slot['slot']}", first, stop, _STATE[slot["state"]], text, *place


def _smooth(values: list[float]) -> list[float]:
    """Return a running mean that remembers about six points."""
    kept: list[float] = []
    for n, value in enumerate(values, 1):
        share = max(2.0 / (n + 1), 0.15)
        kept.append(value if not kept else kept[-1] + share * (value - kept[-1]))
    return kept


def _rate(record: dict[str, Any]) -> str:
    rows, seconds = record.get("rows"), record.get("seconds")
    return f"{rows / seconds:,.0f}" if rows and seconds else "–"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60}:{whole % 60:02d} min" if whole < 3600 else f"{whole // 3600}:{whole // 60 % 60:02d} h"
