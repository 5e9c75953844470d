"""Which cases of a test are in the default tier, and how many tests it has."""

import pytest
from tiers import ELSEWHERE, mark_deep_cases


class Case:
    """Stands in for a collected test."""

    def __init__(self, nodeid: str, *markers: str) -> None:
        self.nodeid = nodeid
        self.markers = {name: getattr(pytest.mark, name) for name in markers}

    def get_closest_marker(self, name: str) -> object:
        return self.markers.get(name)

    def add_marker(self, marker: pytest.MarkDecorator) -> None:
        self.markers[marker.name] = marker


def deep_cases(*cases: Case) -> list[bool]:
    mark_deep_cases(list(cases))
    return ['deep' in case.markers for case in cases]


def test_first_and_last_case_are_in_the_default_tier():
    first, second = ([Case(f'test_a.py::test_{name}[{case}]') for case in range(4)] for name in 'ab')
    assert deep_cases(*first, *second) == [False, True, True, False] * 2
    assert deep_cases(*(Case(f'test_a.py::test_{name}') for name in 'abc')) == [False] * 3


def test_a_test_may_choose_its_cases():
    assert deep_cases(*(Case(f'test_a.py::test[{case}]', 'all_cases') for case in range(3))) == [False] * 3
    chosen = [Case('test_a.py::test[0]', 'deep'), *(Case(f'test_a.py::test[{case}]') for case in (1, 2, 3))]
    assert deep_cases(*chosen) == [True, False, False, False]


def test_cases_that_are_in_neither_tier_do_not_count():
    on_gpu = [Case(f'test_a.py::test[gpu{case}]', 'gpu') for case in range(3)]
    assert deep_cases(*on_gpu, *(Case(f'test_a.py::test[{case}]') for case in range(3))) == [False] * 4 + [True, False]


def test_the_default_tier_has_at_most_1500_tests(request):
    collected = request.session.items
    default = [item for item in collected if not any(map(item.get_closest_marker, ('deep', *ELSEWHERE)))]
    assert request.node in default
    assert len(default) <= 1500
