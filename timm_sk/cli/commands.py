"""What all commands share: `--quiet`, examples in the help, completion of names, and importing torch late."""

import importlib
import inspect
import sys
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, TypeVar

import typer

from ..checkpoints import CHECKPOINTS
from ..console import set_quiet
from ..finetune.recipes import recipe_names
from .dataclass_options import set_parameters

F = TypeVar('F', bound=Callable[..., None])
Quiet = Annotated[bool, typer.Option('--quiet', '-q', help='Print no progress and no notes, only results and errors.')]


def command(app: typer.Typer, name: str, *examples: str, **settings: Any) -> Callable[[F], F]:
    """Decorate a function to register it as a command; the examples are command lines at the end of its help."""

    def decorate(function: F) -> F:
        @wraps(function)
        def run(*, quiet: bool, **arguments: Any) -> None:
            if quiet:
                set_quiet(True)
            _load_package()
            function(**arguments)

        option = inspect.Parameter('quiet', inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Quiet)
        parameters = [*inspect.signature(function, eval_str=True).parameters.values(), option]
        for item in parameters:
            for described in getattr(item.annotation, '__metadata__', ()):
                described.autocompletion = _COMPLETIONS.get(item.name)
        set_parameters(run, parameters)
        app.command(name, epilog='\n\n'.join(['[bold]Examples[/bold]', *examples]), **settings)(run)
        return function

    return decorate


def _load_package() -> None:
    """Run the `__init__.py` of the package, unless it has run: `timm_sk_cli` leaves that to the first command."""
    package = sys.modules['timm_sk']
    if not hasattr(package, '__version__'):
        importlib.reload(package)


def _architectures() -> list[str]:
    return list(dict.fromkeys(row.arch for row in CHECKPOINTS.values()))


def _checkpoints() -> list[str]:
    return [name for name, row in CHECKPOINTS.items() if row.sources]


def _models() -> list[str]:
    return [*_architectures(), *_checkpoints()]


# What the shell completes, by the name of a command's parameter; typer leaves out what does not begin as the word does.
_COMPLETIONS: dict[str, Callable[[], list[str]]] = {
    **dict.fromkeys(('model', 'model_name', 'models', 'pattern', 'name', 'names', 'targets'), _models),
    **dict.fromkeys(('base', 'to'), _checkpoints),
    'arch': _architectures,
    'config': recipe_names,
}
