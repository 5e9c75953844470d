"""The two tiers of tests: `pytest` runs the default one, `pytest -m deep` the rest.

What takes long is marked as deep. Of a test with many cases the default tier has the first and the last, unless some of
its cases are marked as deep, or the test as `all_cases`.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import TypeVar

import pytest

T = TypeVar('T')
ELSEWHERE = ('gpu', 'integration', 'browser')


def deep_except(kept: Collection[T], values: Iterable[T]) -> list[T]:
    """Values of a test's parameter, of which the default tier has those kept, and the deep one the others."""
    return [value if value in kept else pytest.param(value, marks=pytest.mark.deep) for value in values]


def mark_deep_cases(items: list[pytest.Item]) -> None:
    """Mark the cases of a test as deep, but for the first and the last, where the test does not say itself."""
    tests = defaultdict(list)
    for item in items:
        if not any(item.get_closest_marker(name) for name in ELSEWHERE):
            tests[item.nodeid.partition('[')[0]].append(item)
    for cases in tests.values():
        if not any(case.get_closest_marker(name) for case in cases for name in ('deep', 'all_cases')):
            for case in cases[1:-1]:
                case.add_marker(pytest.mark.deep)
