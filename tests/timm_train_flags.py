"""What timm's `train.py` does with a YAML: its flags, from `tests/data/timm_train_flags.txt`, as a parser."""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

_FILE = Path(__file__).parent / 'data' / 'timm_train_flags.txt'
_TYPES = {'str': str, 'int': int, 'float': float, 'dict': str}


class Flag(NamedTuple):
    """One flag.

    Attributes:
        kind: 'flag' takes no value; 'str', 'int' and 'float' one, in the plural several; 'dict' name=value pairs.
        default: What it is without.
    """

    kind: str
    default: Any


def read_flags() -> dict[str, Flag]:
    """All flags by their destination."""
    lines = [line for line in _FILE.read_text().splitlines() if not line.startswith('#')]
    parts = [line.split(' ', 2) for line in lines]
    return {name: Flag(kind, json.loads(default)) for name, kind, default in parts}


def parse(settings: dict[str, Any], *arguments: str) -> argparse.Namespace:
    """What the script runs with: the flags' defaults, those of a YAML over them, and arguments over these."""
    parser = argparse.ArgumentParser()
    for name, (kind, default) in read_flags().items():
        option = f'--{name.replace("_", "-")}'
        if kind == 'flag':
            parser.add_argument(option, action='store_true', default=default)
        else:
            several: dict[str, Any] = dict(nargs='+') if kind.endswith('s') or kind == 'dict' else {}
            parser.add_argument(option, type=_TYPES[kind.removesuffix('s')], default=default, **several)
    parser.set_defaults(**settings)
    return parser.parse_args(arguments)


def fits(value: Any, kind: str) -> bool:
    """Whether a YAML's value has a flag's kind: the script of timm 1.0.31 refuses others."""
    if kind == 'flag':
        return isinstance(value, bool)
    if kind.endswith('s'):
        return isinstance(value, list) and all(fits(item, kind[:-1]) for item in value)
    accepted = {'str': str, 'int': int, 'float': (int, float), 'dict': dict}[kind]
    return isinstance(value, accepted) and not isinstance(value, bool)
