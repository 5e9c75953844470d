"""Options of a command from the fields of a dataclass."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

F = TypeVar('F', bound=Callable[..., None])


def with_options(config_class: type) -> Callable[[F], F]:
    """Decorate a command that has `**settings`: they become an option for each field of a dataclass.

    The fields have a `help`, and optionally a `group`, in their metadata. The field `data` becomes an argument.
    """
    hints = get_type_hints(config_class)
    options = [_parameter(field, hints[field.name]) for field in dataclasses.fields(config_class)]

    def decorate(command: F) -> F:
        own = inspect.signature(command, eval_str=True).parameters.values()
        parameters = [*(item for item in own if item.kind is not inspect.Parameter.VAR_KEYWORD), *options]
        set_parameters(command, parameters)
        return command

    return decorate


def set_parameters(command: Callable[..., None], parameters: Sequence[inspect.Parameter]) -> None:
    """Set the parameters that typer reads from a command."""
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {item.name: item.annotation for item in parameters}


def _parameter(field: 'dataclasses.Field[Any]', kind: Any) -> inspect.Parameter:
    """A field as a parameter that typer reads."""
    text, group = field.metadata['help'], field.metadata.get('group')
    flags = [f'--no-{field.name[3:]}/--{field.name[3:]}'] if field.name.startswith('no_') else []  # not --no-no-…
    option = typer.Option(*flags, help=text, rich_help_panel=group)
    default: Any = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
    if kind == tuple[int, ...]:  # which typer does not know
        kind, default = list[int], [*default]
    described = typer.Argument(metavar='DATA', help=text) if field.name == 'data' else option
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, described]
    )
