"""The source of the loops in which threads wait for each other without the interpreter.

A thread that stands by looks at a word of memory again and again. Who posts to it writes a list of calls, each the
address of a kernel's machine code and of its arguments (`Kernel.bound`), and then that word. The thread makes the
calls, writes how many are done, and looks on; when nothing has been posted for a while it gives up and is woken by
other means.

The words of a box are as far apart as lines of a cache, and change hands by atomic reads and writes: who sees the word
sees all that was written before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

LINE: Final = 8
"""Words between two of a box."""

STATE: Final = 0
DONE: Final = 1 * LINE
"""Calls that are made."""
PROGRAM: Final = 2 * LINE
"""Address of ``(address of the code, address of its arguments, their number)`` for each call; then how many calls."""
FAILED: Final = 3 * LINE
CLOCKS: Final = 4 * LINE
"""Where the system writes the time for the thread that stands by, and a line further for the one that posts."""
PATIENCE: Final = 6 * LINE
"""Nanoseconds without calls after which the thread gives up."""
WORDS: Final = 7 * LINE

AWAY: Final = 0
READY: Final = 1
POSTED: Final = 2

OFTEN: Final = 64
"""Looks between two at the clock."""

_MONOTONIC: Final = 1


def make_stand(counts: tuple[int, ...], pauses: bool) -> tuple[Callable[..., None], frozenset[str]]:
    """Return the kernel ``(box, clock)``: make what is posted until nothing was for as long as the box says.

    Parameters
    ----------
    counts : tuple of int
        Numbers of arguments that a call may have.
    pauses : bool
        Whether the processor knows ``pause``.
    """
    from numba import njit

    load, store, swap = make_load(), make_store(), make_swap()
    now, rest, word = make_now(), make_pause(pauses), make_word()
    run: Any = None
    for count in counts:
        run = _either(count, make_invoke(count), run)

    def wait(box: Any, clock: Any) -> Any:
        begin, looks, patience = now(clock, box, CLOCKS), 0, box[PATIENCE]
        while load(box, STATE) != POSTED:
            rest()
            looks += 1
            if looks % OFTEN == 0 and now(clock, box, CLOCKS) - begin > patience and swap(box, STATE, READY, AWAY):
                return False
        return True

    posted = njit(wait, error_model="numpy")

    def stand(box: Any, clock: Any) -> None:
        while posted(box, clock):
            at, calls = box[PROGRAM], box[PROGRAM + 1]
            if calls < 0:
                store(box, STATE, AWAY)
                return
            for k in range(calls):
                if run(word(at, 3 * k + 2), word(at, 3 * k), word(at, 3 * k + 1)) != 0:
                    box[FAILED] = 1
                store(box, DONE, k + 1)
            store(box, STATE, READY)

    return stand, frozenset()


def make_post() -> tuple[Callable[..., None], frozenset[str]]:
    """Return the kernel ``(box, program, calls, woken)``: post to a thread that is not at work.

    ``woken[0]`` becomes 1 where it stands by, 0 where it is away.
    """
    store, swap = make_store(), make_swap()

    def post(box: Any, program: Any, calls: Any, woken: Any) -> None:
        box[PROGRAM], box[PROGRAM + 1] = program, calls
        store(box, DONE, 0)
        woken[0] = 1
        if not swap(box, STATE, READY, POSTED):
            store(box, STATE, POSTED)
            woken[0] = 0

    return post, frozenset()


def make_wait(pauses: bool) -> tuple[Callable[..., None], frozenset[str]]:
    """Return the kernel ``(box, calls, clock, patience, there)``: wait until so many calls are made, or too long.

    For 0 calls it is waited until nothing is posted any more. ``there[0]`` becomes 1 where that is so.
    """
    load, now, rest = make_load(), make_now(), make_pause(pauses)

    def wait(box: Any, calls: Any, clock: Any, patience: Any, there: Any) -> None:
        begin, looks = now(clock, box, CLOCKS + LINE), 0
        there[0] = 1
        while load(box, DONE) < calls if calls > 0 else load(box, STATE) == POSTED:
            rest()
            looks += 1
            if looks % OFTEN == 0 and now(clock, box, CLOCKS + LINE) - begin > patience:
                there[0] = 0
                return

    return wait, frozenset()


def _either(count: int, invoke: Any, other: Any) -> Any:
    """Return ``run(words, address, values)``: `invoke` for `count` words, else `other`."""
    from numba import njit

    def only(_words: Any, address: Any, values: Any) -> Any:
        return invoke(address, values)

    def one(words: Any, address: Any, values: Any) -> Any:
        return invoke(address, values) if words == count else other(words, address, values)

    return njit(only if other is None else one, error_model="numpy")


def make_load() -> Any:
    """Return ``load(box, word)``: read it, and with it all that was written before it."""
    from numba import types
    from numba.extending import intrinsic

    def load(_typing: Any, box: Any, _word: Any) -> Any:
        def generate(context: Any, builder: Any, given: Any, values: Any) -> Any:
            return builder.load_atomic(_place(context, builder, given, values), "acquire", 8)

        return types.int64(box, types.intp), generate

    return intrinsic(load)


def make_store() -> Any:
    """Return ``store(box, word, value)``: write it after all that was written before."""
    from numba import types
    from numba.extending import intrinsic

    def store(_typing: Any, box: Any, _word: Any, _value: Any) -> Any:
        def generate(context: Any, builder: Any, given: Any, values: Any) -> Any:
            builder.store_atomic(values[2], _place(context, builder, given, values), "release", 8)
            return context.get_dummy_value()

        return types.void(box, types.intp, types.int64), generate

    return intrinsic(store)


def make_swap() -> Any:
    """Return ``swap(box, word, old, new)``: write new where old is, and say whether it was."""
    from numba import types
    from numba.extending import intrinsic

    def swap(_typing: Any, box: Any, _word: Any, _old: Any, _new: Any) -> Any:
        def generate(context: Any, builder: Any, given: Any, values: Any) -> Any:
            place = _place(context, builder, given, values)
            return builder.extract_value(builder.cmpxchg(place, values[2], values[3], "acq_rel", "acquire"), 1)

        return types.boolean(box, types.intp, types.int64, types.int64), generate

    return intrinsic(swap)


def make_word() -> Any:
    """Return ``word(address, k)``: the k-th word of 8 bytes from an address."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    def word(_typing: Any, _address: Any, _k: Any) -> Any:
        def generate(_context: Any, builder: Any, _given: Any, values: Any) -> Any:
            start = builder.inttoptr(values[0], ir.IntType(64).as_pointer())
            return builder.load(builder.gep(start, [values[1]]))

        return types.int64(types.int64, types.intp), generate

    return intrinsic(word)


def make_invoke(count: int) -> Any:
    """Return ``invoke(address, values)``: call a function with `count` words from another address."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    def invoke(_typing: Any, _address: Any, _values: Any) -> Any:
        def generate(_context: Any, builder: Any, _given: Any, values: Any) -> Any:
            word = ir.IntType(64)
            kind = ir.FunctionType(ir.IntType(32), [word] * count)
            start = builder.inttoptr(values[1], word.as_pointer())
            entries = [builder.load(builder.gep(start, [word(k)])) for k in range(count)]
            return builder.sext(builder.call(builder.inttoptr(values[0], kind.as_pointer()), entries), word)

        return types.int64(types.int64, types.int64), generate

    return intrinsic(invoke)


def make_now() -> Any:
    """Return ``now(clock, box, word)``: nanoseconds, by the system's ``clock_gettime``, which writes to the box."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    def now(_typing: Any, _clock: Any, box: Any, _word: Any) -> Any:
        def generate(context: Any, builder: Any, given: Any, values: Any) -> Any:
            place = _place(context, builder, (given.args[1],), (values[1], values[2]))
            kind = ir.FunctionType(ir.IntType(32), [ir.IntType(32), place.type])
            builder.call(
                builder.inttoptr(values[0], kind.as_pointer()), [ir.Constant(ir.IntType(32), _MONOTONIC), place]
            )
            seconds, rest = (builder.load(builder.gep(place, [ir.IntType(64)(k)])) for k in (0, 1))
            return builder.add(builder.mul(seconds, ir.IntType(64)(10**9)), rest)

        return types.int64(types.intp, box, types.intp), generate

    return intrinsic(now)


def make_pause(pauses: bool) -> Any:
    """Return ``rest()``: let the other thread of this core go first, where the processor has a word for it."""
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    def rest(_typing: Any) -> Any:
        def generate(context: Any, builder: Any, _given: Any, _values: Any) -> Any:
            if pauses:
                kind = ir.FunctionType(ir.VoidType(), [])
                builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
            return context.get_dummy_value()

        return types.void(), generate

    return intrinsic(rest)


def _place(context: Any, builder: Any, given: Any, values: Any) -> Any:
    """Return the address of word ``values[1]`` of the box ``values[0]``."""
    kinds = given if isinstance(given, tuple) else given.args
    box = context.make_array(kinds[0])(context, builder, values[0])
    return builder.gep(box.data, [values[1]])
