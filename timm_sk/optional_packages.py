"""Packages that only some commands need."""

from importlib.util import find_spec


def require_package(name: str, extra: str) -> None:
    """Check that a package is installed.

    Args:
        name: Name of the package.
        extra: Extra of this package that installs it.

    Raises:
        ValueError: If it is not installed.
    """
    if find_spec(name) is None:
        raise ValueError(f'{name} is not installed: pip install "timm_sk[{extra}]".')
