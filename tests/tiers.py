"""The two tiers of tests: `pytest` runs the default tier, `pytest -m deep` the rest.

Slow tests are marked as deep. Of a parametrized test the default tier runs the first and the last case, unless the
test is marked with `all_cases` or marks cases as deep itself.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import TypeVar

import pytest

T = TypeVar('T')
ELSEWHERE = ('gpu', 'integration', 'browser')  # in neither tier


def deep_except(kept: Collection[T], values: Iterable[T]) -> list[T]:
    """Parameters of a test: the default tier runs `kept`, the deep tier all others."""
    return [value if value in kept else pytest.param(value, marks=pytest.mark.deep) for value in values]


def mark_deep_cases(items: list[pytest.Item]) -> None:
    """Mark all cases of a test but the first and the last as deep, unless the test chooses its own."""
    tests = defaultdict(list)
    for item in items:
        if not any(item.get_closest_marker(name) for name in ELSEWHERE):
            tests[item.nodeid.partition('[')[0]].append(item)
    for cases in tests.values():
        if not any(case.get_closest_marker(name) for case in cases for name in ('deep', 'all_cases')):
            for case in cases[1:-1]:
                case.add_marker(pytest.mark.deep)
