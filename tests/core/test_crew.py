"""A crew does every part once, at the same time, tells what went wrong, and goes home."""

import gc
import threading

import pytest

from bigopt.core.crew import Crew


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_every_part_is_done_once(parts):
    crew = Crew()
    for count in (0, 1, 5, 100):
        found = []
        crew.share(lambda start, stop, found=found: found.extend(range(start, stop)), count, parts)
        assert sorted(found) == list(range(count))


def test_parts_run_at_the_same_time():
    meeting = threading.Barrier(3)
    Crew().share(lambda *_: meeting.wait(20), 3, 3)  # none would return if they came one by one


@pytest.mark.parametrize("bad", [0, 2])
def test_what_a_part_raises_is_raised_after_the_others(bad):
    crew, done = Crew(), []

    def work(start, stop):
        if start == bad:
            raise ZeroDivisionError
        done.append(start)

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            crew.share(work, 4, 4)
    assert sorted(done) == sorted([k for k in range(4) if k != bad] * 2)


def test_its_threads_end_with_it():
    before = set(threading.enumerate())
    crew = Crew()
    crew.share(lambda *_: None, 4, 4)
    mine = set(threading.enumerate()) - before
    assert len(mine) == 3
    del crew
    gc.collect()
    for thread in mine:
        thread.join(20)
        assert not thread.is_alive()
