"""Notes beside the blocks of a cache: what a round computed from the rows of a unit and another may ask for again.

The margins of a line search are such parts: losing them costs a pass and changes no bit. A note is valid for one digest
of what it was computed from, besides the rows. The lock and the budget are those of whoever owns the notes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bigopt.data.plan import Ints
from bigopt.data.view import DataView

Key = tuple[str, tuple[int, ...]]


@dataclass
class Note:
    """Parts computed from a unit's rows; whoever opened it fills it and says when it is `complete`."""

    digest: bytes
    charge: int
    parts: list[Any] = field(default_factory=list)
    complete: bool = False


class Notes:
    """Notes by (view, unit).

    Attributes
    ----------
    held : int
        Bytes that they were opened for.
    """

    def __init__(self) -> None:
        self.held = 0
        self._notes: dict[Key, Note] = {}

    def get(self, view: DataView, unit: Ints, digest: bytes) -> list[Any] | None:
        """Return the parts of a unit's note, or None where there is no complete one of this digest."""
        note = self._notes.get(_key(view, unit))
        return note.parts if note is not None and note.complete and note.digest == digest else None

    def open(self, view: DataView, unit: Ints, digest: bytes, size: int) -> Note:
        """Return a new note, to be filled with `size` bytes."""
        note = self._notes[_key(view, unit)] = Note(digest, size)
        self.held += size
        return note

    def drop(self, view: DataView, unit: Ints) -> int:
        """Give up a unit's note; return its bytes."""
        return self._drop(_key(view, unit))

    def drop_oldest(self) -> int:
        """Give up the note that was opened first; return its bytes, 0 where there is none."""
        return self._drop(next(iter(self._notes), ("", ())))

    def _drop(self, key: Key) -> int:
        note = self._notes.pop(key, None)
        self.held -= 0 if note is None else note.charge
        return 0 if note is None else note.charge


def _key(view: DataView, unit: Ints) -> Key:
    return view.key, tuple(int(v) for v in unit)
