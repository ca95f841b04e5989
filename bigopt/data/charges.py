"""What decoded rows count for in a budget of bytes: those that stay, and what has to be beside them.

A block that is mapped from a file of the node counts for its permutation only, for its pages are the system's; so does
one whose features are lent.
"""

from __future__ import annotations

from bigopt.core.errors import ConfError
from bigopt.data.labels import Labels
from bigopt.data.loading import Loader
from bigopt.data.scratch import is_mapped
from bigopt.data.view import Block, DataView


def charge(view: DataView, index: int, block: Block) -> int:
    """Return the bytes that a partition's block counts for."""
    if view.lent:
        return view.held_bytes(index)
    return 8 * len(block.X) if is_mapped(block) else max(view.decoded_bytes(index), block.nbytes)


def beside(view: DataView, index: int, stream: int, budget: int, loader: Loader, labels: Labels) -> int:
    """Return what is needed beside a whole partition: to load it, for streams of all slots and for their labels.

    Parameters
    ----------
    view : DataView
    index : int
        Partition number.
    stream : int
        Bytes that a stream of it would hold.
    budget : int
    loader : Loader
    labels : Labels
        Those that are kept.
    """
    loading = view.loading_bytes(index, loader)
    if view.all_bytes <= budget:
        return loading
    return loading + loader.threads * stream + labels.expected(view)


def loading_room(view: DataView, index: int, budget: int, loader: Loader, *, decoded: bool) -> int:
    """Return the bytes that it takes to load a partition, or to prepare it where it is `decoded`.

    Raises
    ------
    ConfError
        Where that is more than the budget.
    """
    room = view.held_bytes(index) + (0 if decoded else view.loading_bytes(index, loader))
    if room > budget:
        raise ConfError(
            f"partition {index} needs {room / 1e6:.1f} MB while it is decoded, data.memory allows "
            f"{budget / 1e6:.1f} MB",
            where="data.memory",
            hint="raise data.memory, or write the data again with a smaller ingest.partition_rows",
        )
    return room
