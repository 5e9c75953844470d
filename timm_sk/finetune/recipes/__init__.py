"""Settings of training runs as YAML, by name; each file states its source and what was changed."""

from importlib.resources import as_file, files
from pathlib import Path

_HERE = files(__package__)


def recipe_names() -> list[str]:
    """The names of the recipes that ship with the package."""
    return sorted(entry.name.removesuffix('.yaml') for entry in _HERE.iterdir() if entry.name.endswith('.yaml'))


def find_recipe(name: str) -> Path:
    """The file of a recipe.

    Raises:
        ValueError: If no recipe has that name; lists those that there are.
    """
    stem = name.removesuffix('.yaml')
    if stem not in recipe_names():
        raise ValueError(f'{name}: neither a file nor a recipe. There are: {", ".join(recipe_names())}.')
    with as_file(_HERE / f'{stem}.yaml') as path:  # an installed wheel's files are files
        return path
