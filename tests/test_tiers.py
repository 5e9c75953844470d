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


def cases(count: int, *markers: str, name: str = 'a') -> list[Case]:
    return [Case(f'test_a.py::test_{name}[{markers}{case}]', *markers) for case in range(count)]


def test_first_and_last_case_are_in_default_tier():
    assert deep_cases(*cases(4), *cases(4, name='b')) == [False, True, True, False] * 2
    assert deep_cases(*(Case(f'test_a.py::test_{name}') for name in 'abc')) == [False] * 3
    assert deep_cases(*cases(3, 'all_cases')) == [False] * 3
    assert deep_cases(*cases(1, 'deep'), *cases(3)) == [True, False, False, False]
    assert deep_cases(*cases(3, 'gpu'), *cases(3)) == [False] * 4 + [True, False]  # those in no tier do not count


def test_default_tier_has_at_most_1500_tests(request):
    collected = request.session.items
    default = [item for item in collected if not any(map(item.get_closest_marker, ('deep', *ELSEWHERE)))]
    assert request.node in default
    assert len(default) <= 1500
