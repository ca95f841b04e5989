"""The driver's inbox: whoever waits reads, a caretaker where nobody does, and nothing is looked at twice."""

import os
import queue
import threading

import pytest

from bigopt.backends.inbox import Inbox


@pytest.fixture
def inbox():
    made = Inbox()
    yield made
    made.close()


class Pipe:
    """A pipe that is watched; each byte read from it is put in, the end of it ends it."""

    def __init__(self, inbox):
        self.inbox, self.readers, self.ended = inbox, [], threading.Event()
        self.source, self.end = os.pipe()
        inbox.watch(self.source, self._read, self.ended.set)

    def _read(self):
        self.readers.append(threading.current_thread().name)
        got = os.read(self.source, 1)
        if got:
            self.inbox.put(got)
        return bool(got)


def test_whoever_waits_reads_what_has_come(inbox):
    first, second = Pipe(inbox), Pipe(inbox)
    os.write(first.end, b"ab")
    os.write(second.end, b"c")
    assert sorted(inbox.get(5.0) for _ in range(3)) == [b"a", b"b", b"c"]
    with pytest.raises(queue.Empty):
        inbox.get(0.0)


def test_what_another_thread_puts_in_wakes_whoever_waits(inbox):
    pipe = Pipe(inbox)
    for k in range(50):
        thread = threading.Thread(target=inbox.put, args=(k,))
        thread.start()
        assert inbox.get(60.0) == k
        thread.join()
    assert pipe.readers == []


def test_where_nobody_waits_a_caretaker_reads_and_sees_the_end(inbox):
    pipe = Pipe(inbox)
    os.write(pipe.end, b"x")
    os.close(pipe.end)
    assert pipe.ended.wait(10.0)
    assert pipe.readers == ["bigopt-caretaker"] * 2
    os.close(pipe.source)
    assert inbox.get(1.0) == b"x"
    other = Pipe(inbox)  # of the same number
    assert other.source == pipe.source
    os.write(other.end, b"y")
    assert inbox.get(5.0) == b"y"


def test_closing_ends_what_is_watched_and_what_comes_later():
    inbox = Inbox()
    pipe = Pipe(inbox)
    inbox.close()
    inbox.close()
    assert pipe.ended.is_set()
    assert Pipe(inbox).ended.is_set()
    inbox.put(1)
    assert inbox.get_nowait() == 1
