"""Lines of svmlight (libsvm) text to sparse rows, a block of bytes at a time.

    LABEL [qid:N] INDEX:VALUE INDEX:VALUE ...  [# comment]

A label and a value are numbers, indices are whole, not negative and increase within a line; ``qid`` and comments are
passed over, blank lines too. A block is checked as a whole (where tokens begin, and what stands before each) and its
numbers are converted in one call; only a block that is wrong is walked line by line, to say which line and why.

This module needs NumPy alone.
"""

from __future__ import annotations

import re
import warnings
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bigopt.core.errors import DataError

Array = npt.NDArray[Any]

SUFFIXES: Final = (".svm", ".svmlight", ".libsvm")
COMPRESSED: Final = (".gz", ".bz2")
"""Files that are ingested, not trained on directly: they have no ranges of bytes."""

_LINE: Final = re.compile(rb"([^\s:#]+)((?:[ \t]+[^\s:]+:[^\s:]+)*)[ \t\r]*")
_COMMENT: Final = re.compile(rb"#[^\n]*")
_QID: Final = re.compile(rb"(?<=[ \t])qid:[^ \t\r\n]*")
_SHOWN: Final = 40

_TOKEN, _SPACE, _COLON = 0, 1, 2
_CLASS: Final = np.zeros(256, dtype=np.uint8)
_CLASS[[9, 10, 13, 32]] = _SPACE
_CLASS[ord(":")] = _COLON
_MARK: Final = np.ones(256, dtype=np.bool_)
_MARK[[*range(ord("0"), ord("9") + 1), 9, 10, 13, 32, ord(":")]] = False
"""Bytes that are neither digits nor separators."""


class Lines(NamedTuple):
    """Rows of a block.

    Parameters
    ----------
    labels : ndarray, shape (k,), float64
    values : ndarray, shape (nnz,), float64
    indices : ndarray, shape (nnz,), int64
        As written.
    indptr : ndarray, shape (k + 1,), int64
    line : ndarray, shape (k,), int64
        Line of each row, 0 the first of the block.
    """

    labels: Array
    values: Array
    indices: Array
    indptr: Array
    line: Array


class Survey(NamedTuple):
    """What a block holds, without its numbers.

    Parameters
    ----------
    at, line : ndarray, shape (k,), int64
        Byte of the block at which each row begins, and its line, 0 the first of the block.
    indptr : ndarray, shape (k + 1,), int64
        Values before each row.
    least, most : int
        Least and greatest index, -1 where there is none.
    whole : bool
        Whether all labels are written as integers.
    lines : int
        Lines of the block.
    """

    at: Array
    line: Array
    indptr: Array
    least: int
    most: int
    whole: bool
    lines: int


class _Tokens(NamedTuple):
    """Where tokens begin: all, and which of them are first in their line and which are indices; see `_tokens`."""

    starts: Array
    rows: Array
    pairs: Array
    indptr: Array
    line: Array
    marks: Array


def parse(data: bytes, where: str, first: int) -> Lines:
    """Return the rows of a block of whole lines.

    Parameters
    ----------
    data : bytes
    where : str
        The file, for messages.
    first : int
        Number of the block's first line.

    Raises
    ------
    DataError
        Naming the line and what was found in it.
    """
    text = _plain(data)
    tokens = _tokens(text)
    found = None if tokens is None else _numbers(text, tokens)
    if found is None:
        _explain(text, where, first)
        raise DataError("a block that cannot be read", where=f"{where}, line {first} and below")
    return found


def survey(data: bytes, where: str, first: int) -> Survey:
    """Return what a block of whole lines holds; `parse` looks at its numbers more closely.

    Raises
    ------
    DataError
        For a line that is no line of svmlight.
    """
    text = _plain(data)
    tokens = _tokens(text)
    if tokens is None:
        _explain(text, where, first)
        raise DataError("a block that cannot be read", where=f"{where}, line {first} and below")
    starts, index, indptr, marks = tokens.starts, tokens.pairs, tokens.indptr, tokens.marks
    labels = starts[tokens.rows]
    raw = np.frombuffer(text, dtype=np.uint8)
    signed = (raw[labels] == ord("+")) | (raw[labels] == ord("-")) if len(labels) else labels
    whole = bool(np.all(marks[np.append(starts[1:], len(text))[tokens.rows]] - marks[labels] == signed))
    filled = np.flatnonzero(np.diff(indptr))
    ends = index[np.concatenate([indptr[filled], indptr[filled + 1] - 1])] if len(index) else index
    numbers = [int(text[starts[k] : starts[k + 1] - 1]) for k in ends.tolist()]  # least and greatest of each row
    return Survey(
        labels, tokens.line, indptr, min(numbers, default=-1), max(numbers, default=-1), whole, text.count(b"\n")
    )  # fmt: skip


def _plain(data: bytes) -> bytes:
    """Return the lines, ended, with blanks where comments and qid were."""
    if not data.endswith(b"\n"):
        data += b"\n"
    if b"#" in data:
        data = _COMMENT.sub(lambda m: b" " * len(m[0]), data)
    if b"qid:" in data:
        data = _QID.sub(lambda m: b" " * len(m[0]), data)
    return data


def _tokens(text: bytes) -> _Tokens | None:
    """Find label, indices and values by where they stand; None where anything is wrong."""
    raw = np.frombuffer(text, dtype=np.uint8)
    kind = _CLASS[raw]
    gap = kind != _TOKEN
    begins = ~gap
    begins[1:] &= gap[:-1]
    starts = np.flatnonzero(begins)
    colons = np.flatnonzero(kind == _COLON)
    marks = np.concatenate([[0], np.cumsum(_MARK[raw], dtype=np.int64)])
    if len(starts) == 0:
        none = np.zeros(0, dtype=np.int64)
        return None if len(colons) else _Tokens(starts, none, none, np.zeros(1, dtype=np.int64), none, marks)
    line = np.searchsorted(np.flatnonzero(raw == 10), starts)
    first = np.concatenate([[True], line[1:] != line[:-1]])
    value = np.concatenate([[False], raw[starts[1:] - 1] == ord(":")])
    index = ~(first | value)
    at, rows = np.flatnonzero(index), np.flatnonzero(first)
    if raw[0] == ord(":") or not int(value.sum()) == len(colons) == len(at) or gap[colons - 1].any():
        return None
    if not index[np.flatnonzero(value) - 1].all() or (value & first).any():
        return None
    if len(at) and (marks[starts[at + 1]] != marks[starts[at]]).any():  # an index is digits
        return None
    indptr = np.append(np.searchsorted(at, rows), len(at)).astype(np.int64)
    return _Tokens(starts, rows, at, indptr, line[rows], marks)


def _numbers(text: bytes, tokens: _Tokens) -> Lines | None:
    """Convert the tokens; None where one is no number, or indices do not increase."""
    at, indptr = tokens.pairs, tokens.indptr
    if len(tokens.starts) == 0:
        return Lines(np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int64), indptr, tokens.line)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of text that is no number; seen by the count
        try:
            numbers = np.fromstring(text.replace(b":", b" "), dtype=np.float64, sep=" ")
        except ValueError:
            return None
    if len(numbers) != len(tokens.starts):
        return None
    if len(at) == 0:
        return Lines(numbers, np.zeros(0), np.zeros(0, dtype=np.int64), indptr, tokens.line)
    indices = numbers[at]
    rising = indices[1:] > indices[:-1]
    bounds = indptr[1:-1]
    rising[bounds[(bounds > 0) & (bounds < len(at))] - 1] = True
    if not rising.all() or indices.max() >= 2.0**53:
        return None
    return Lines(numbers[tokens.rows], numbers[at + 1], indices.astype(np.int64), indptr, tokens.line)


def _explain(data: bytes, where: str, first: int) -> None:
    """Raise for the first line that is wrong."""
    for number, line in enumerate(data.split(b"\n"), start=first):
        text = line.strip()
        if not text:
            continue
        place = f"{where}, line {number}"
        hint = "label index:value index:value ..."
        match = _LINE.fullmatch(line.lstrip())
        if match is None:
            raise DataError(f"no svmlight line: '{_shown(text)}'", where=place, hint=hint)
        label = match[1]
        if b"," in label:
            raise DataError(f"several labels '{_shown(label)}'", where=place, hint="one label a line")
        if not _is_number(label):
            raise DataError(f"the label '{_shown(label)}' is no number", where=place, hint=hint)
        last = -1
        for pair in match[2].split():
            index, value = pair.split(b":")
            if not index.isdigit() or int(index) >= 1 << 53:
                raise DataError(f"the index '{_shown(index)}' is no column", where=place, hint="a whole number from 0")
            if not _is_number(value):
                raise DataError(f"the value '{_shown(value)}' of column {int(index)} is no number", where=place)
            if int(index) <= last:
                found = f"column {int(index)} after column {last}"
                raise DataError(found, where=place, hint="indices increase within a line: sort the file")
            last = int(index)


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return b"_" not in text


def _shown(text: bytes) -> str:
    cut = text[:_SHOWN].decode("utf-8", "backslashreplace")
    return cut + ("..." if len(text) > _SHOWN else "")


def looks_like(data: bytes) -> bool:
    """Whether the first line with contents, of the first bytes of a file, is a line of svmlight with a column."""
    for line in _COMMENT.sub(b"", data).split(b"\n")[:100]:
        if line.strip():
            text = _QID.sub(b"", line).strip()
            label, _, rest = text.partition(b" ")
            return _is_number(label) and re.match(rb"\s*\d+:[-+.\d]", rest) is not None
    return False
