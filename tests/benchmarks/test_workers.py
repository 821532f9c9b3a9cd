"""The count of what workers are sent."""

import pickle

import farm
from executors import Mortal


def test_messages_and_answers_are_measured() -> None:
    counting = farm.Counting(Mortal())
    answer = counting.submit(sorted, [3, 1, 2], reverse=True)
    assert answer.result() == [3, 2, 1]
    assert counting.sent == [len(pickle.dumps((sorted, ([3, 1, 2],), {"reverse": True})))]
    assert counting.answered == [len(pickle.dumps([3, 2, 1]))]
