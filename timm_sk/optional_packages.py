"""Packages that only some commands need."""

from importlib.util import find_spec


def require_package(name: str, extra: str) -> None:
    """Raise ValueError if a package, which an extra of this package installs, is missing."""
    if find_spec(name) is None:
        raise ValueError(f'{name} is not installed: pip install "timm_sk[{extra}]".')
