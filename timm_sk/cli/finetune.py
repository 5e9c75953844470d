"""`timm-sk finetune`: its flags are the fields of `finetune.Config`."""

import dataclasses
import inspect
import os
from collections.abc import Callable
from typing import Annotated, Any, Optional, get_type_hints

import typer

from ..console import err, one_line_errors
from ..finetune import Config, Stopped, extract, finetune, read_settings

_HINTS = get_type_hints(Config)
_STOPPED = 130  # as a shell has it for Ctrl-C


def command() -> Callable[..., None]:
    """The command's function, with a parameter for each setting."""

    def run(context: typer.Context, config: str | None, **settings: Any) -> None:
        """Fine-tune a model on images, into a folder that timm, transformers and a hub take.

        Several processes: torchrun --nproc-per-node=N -m timm_sk finetune … Settings come from the flags, then from
        --config, a YAML file or a recipe's name, then from the defaults shown here.
        """
        with one_line_errors():
            given = {name: value for name, value in settings.items() if _is_given(context, name)}
            chosen = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
            resolved = Config(**(read_settings(config) if config else {}) | chosen)
            try:
                written = extract(resolved) if resolved.features else finetune(resolved).export
            except Stopped as stopped:
                if _speaks():
                    err.print(f'{stopped} Go on with the same command and --resume auto.', soft_wrap=True)
                raise typer.Exit(_STOPPED) from stopped
            if _speaks():
                print(written)

    parameters = [
        inspect.Parameter('context', inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        inspect.Parameter(
            'config',
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=None,
            annotation=Annotated[Optional[str], typer.Option('--config', '-c', help='YAML of settings, or a recipe.')],  # noqa: UP045
        ),
        *map(_parameter, dataclasses.fields(Config)),
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _speaks() -> bool:
    """Whether this is the first of the processes, which speaks for all."""
    return os.environ.get('RANK', '0') == '0'


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == 'COMMANDLINE'


def _parameter(field: 'dataclasses.Field[Any]') -> inspect.Parameter:
    """A setting as a parameter that typer reads."""
    text, group = field.metadata['help'], field.metadata['group']
    if field.name == 'data':
        described: Any = typer.Argument(metavar='DATA', help=text)
    else:
        described = typer.Option(help=text, rich_help_panel=group)
    kind = _HINTS[field.name]
    default: Any = field.default
    if kind == tuple[int, ...]:
        kind, default = list[int], [*default]
    return inspect.Parameter(
        field.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=Annotated[kind, described]
    )
