"""Conf to text: the resolved copy of a run, base.yml, the table of ``bigopt options``, hash and difference.

What is written here is read back by the strict reader to the same values. Secrets are not written: of
``data.storage_options`` only switches, numbers and a short list of harmless names stay, and user names and passwords
are taken out of URLs.
"""

from __future__ import annotations

import hashlib
import json
import re
import textwrap
from dataclasses import dataclass
from typing import Any

import msgspec

from bigopt.config import names, values
from bigopt.config.reader import scalar
from bigopt.config.table import Group, Tree
from bigopt.core.errors import ConfError

_PLAIN = re.compile(r"[A-Za-z_/.~][A-Za-z0-9_./=-]*(://[A-Za-z0-9_./=:-]+)?")
_USERINFO = re.compile(r"(?<=://)[^/@\s]*@")
_HARMLESS = frozenset(
    {
        "anon",
        "endpoint_url",
        "endpoint",
        "region",
        "region_name",
        "project",
        "protocol",
        "client_kwargs",
        "config_kwargs",
    }
    | {"requester_pays", "use_ssl", "account_name", "bucket", "host", "port", "timeout", "default_block_size"}
)

RESUMABLE = ("backend.", "stop.", "checkpoint.", "run.bits", "data.scratch", "data.storage_options")
"""What a resumed run may change; anything else that differs is refused."""


def flow(value: Any) -> str:
    """Return one value on one line, as YAML that the strict reader takes back to the same value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return value if _is_plain(value) else _quoted(value)
    if isinstance(value, msgspec.Struct):
        return flow(msgspec.structs.asdict(value))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(str(k))}: {flow(v)}" for k, v in value.items()) + "}"
    return "[" + ", ".join(flow(v) for v in value) + "]"


def _is_plain(text: str) -> bool:
    if not _PLAIN.fullmatch(text):
        return False
    try:
        return scalar(text, "") == text
    except ConfError:
        return False


def _quoted(text: str) -> str:
    def sign(char: str) -> str:
        if char in '"\\':
            return "\\" + char
        if (char.isprintable() and ord(char) < 0x10000) or (ord(char) > 0xFFFF and char.isprintable()):
            return char
        return f"\\U{ord(char):08x}" if ord(char) > 0xFFFF else f"\\u{ord(char):04x}"

    return '"' + "".join(sign(c) for c in text) + '"'


def redact(text: str) -> str:
    """Return text without user names and passwords in URLs."""
    return _USERINFO.sub("", text)


def _harmless(options: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, dict) and name in _HARMLESS:
            kept[name] = _harmless(value)
        elif isinstance(value, (bool, int, float)) or (isinstance(value, str) and name in _HARMLESS):
            kept[name] = value
    return kept


def safe(value: Any) -> Any:
    """Return a value with user names and passwords taken out of its URLs, at any depth."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, msgspec.Struct):
        return safe(msgspec.structs.asdict(value))
    if isinstance(value, dict):
        return {k: safe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [safe(v) for v in value]
    return value


def flat(conf: Tree) -> dict[str, Any]:
    """Return every key of a conf by path, without secrets, in the order of the table."""
    found: dict[str, Any] = {}
    for path in values.leaves():
        value: Any = conf
        for part in path.split("."):
            value = getattr(value, part)
        found[path] = safe(_harmless(value) if path == "data.storage_options" else value)
    return found


def _written(path: str, value: Any) -> str:
    if values.is_size(path) and isinstance(value, int):
        return values.size_text(value)
    return flow(value)


def to_yaml(conf: Tree) -> str:
    """Return a resolved conf as text that `load_conf` reads back; secrets are left out."""
    return "".join(_blocks({p: _written(p, v) for p, v in flat(conf).items()}, {}))


def base_yaml() -> str:
    """Return conf/base.yml: every key with its default and its comment."""
    head = (
        "# Every option of bigopt with its default: what runs when a conf says nothing.\n"
        "# Made from the code (python -m bigopt.config > conf/base.yml); `bigopt options` prints the same table.\n"
        "# null is the sensible default of what was chosen, printed at the start of a run. 1e-3 is a number,\n"
        "# 2GB is 2*10^9 bytes.\n"
        "# Layers: this file < your conf files < key=value on the command line, such as optimizer.name=sgd.\n"
    )
    texts = {p: _written(p, v) for p, v in flat(Tree()).items()}
    return head + "".join(_blocks(texts, {p: values.comment(p) for p in texts}))


def _blocks(texts: dict[str, str], comments: dict[str, str]) -> list[str]:
    lines: list[str] = []
    open_groups: list[str] = []
    for path, text in texts.items():
        *parents, name = path.split(".")
        for depth, group in enumerate(parents):
            if open_groups[: depth + 1] != parents[: depth + 1]:
                if comments:
                    title = group_comment(".".join(parents[: depth + 1]))
                    lines.append(f"\n# {title}\n" if depth == 0 else f"{'  ' * depth}# {title}\n")
                lines.append(f"{'  ' * depth}{group}:\n")
        open_groups = parents
        lines.append(_line("  " * len(parents), f"{name}: {text}", comments.get(path, "")))
    return lines


def _line(indent: str, text: str, comment: str) -> str:
    if not comment:
        return f"{indent}{text}\n"
    line = f"{indent}{text}".ljust(30) + f"  # {comment}"
    if len(line) <= 120:
        return f"{line}\n"
    above = textwrap.wrap(comment, 120 - len(indent) - 2)
    return "".join(f"{indent}# {part}\n" for part in above) + f"{indent}{text}\n"


def group_comment(path: str) -> str:
    """Return the first sentence of a group's docstring."""
    kind: Any = Tree
    for part in path.split("."):
        kind = type(getattr(kind(), part))
    assert issubclass(kind, Group)
    return (kind.__doc__ or "").strip().splitlines()[0].rstrip(".")


@dataclass(frozen=True)
class Option:
    """One row of ``bigopt options``: path, what it takes, default as YAML and as a value, comment."""

    key: str
    takes: str
    default: str
    value: Any
    comment: str


def options() -> list[Option]:
    """Return every key of a conf, in the order of base.yml."""
    defaults = flat(Tree()).items()
    return [Option(path, _takes(path), _written(path, v), v, values.comment(path)) for path, v in defaults]


def _takes(path: str) -> str:
    named = path.endswith(".name") or path in names.VALUES or path == "model.init"
    return values.expects(path).replace("text", "a name") if named else values.expects(path)


def resumable(path: str) -> bool:
    """Return whether a resumed run may change this key."""
    return any(path.startswith(p) if p.endswith(".") else path == p or path.startswith(f"{p}.") for p in RESUMABLE)


def conf_hash(conf: Tree) -> str:
    """Return the sha256 of all that a resumed run may not change, as a checkpoint keeps it."""
    kept = {p: v for p, v in flat(conf).items() if not resumable(p)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, allow_nan=False).encode()).hexdigest()


@dataclass(frozen=True)
class Difference:
    """One key that differs between two confs, each value as YAML."""

    key: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"


def diff(old: Tree, new: Tree, *, resume: bool = True) -> list[Difference]:
    """Return the keys that differ; with `resume` only those that a resumed run may not change."""
    left, right = flat(old), flat(new)
    return [
        Difference(p, _written(p, left[p]), _written(p, right[p]))
        for p in left
        if flow(left[p]) != flow(right[p]) and not (resume and resumable(p))
    ]
