"""One item ahead, on another thread, in order."""

from __future__ import annotations

import threading

import pytest

from lens_train.loop.ahead import Ahead


def test_the_next_one_is_made_while_this_one_is_used():
    made, begun = [], threading.Event()

    def make(number):
        made.append((number, threading.current_thread() is threading.main_thread()))
        if number == 8:
            begun.set()
        return number * 10

    with Ahead(make) as ahead:
        assert ahead.get(7) == 70
        assert begun.wait(10)  # nobody has asked for 8 yet
        assert ahead.get(8) == 80
        assert ahead.get(9) == 90
    assert [number for number, _ in made][:3] == [7, 8, 9]
    assert not any(on_main for _, on_main in made)


def test_a_jump_is_followed():
    with Ahead(lambda number: number) as ahead:
        assert [ahead.get(number) for number in (0, 1, 5, 6, 2)] == [0, 1, 5, 6, 2]


def test_an_error_is_raised_where_the_item_is_asked_for():
    def make(number):
        if number == 1:
            raise ValueError("number 1")
        return number

    with Ahead(make) as ahead:
        assert ahead.get(0) == 0
        with pytest.raises(ValueError, match="number 1"):
            ahead.get(1)
