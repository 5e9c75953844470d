"""`timm-sk validate`: its options are the fields of `ValidationConfig`; docs/validate.md describes them."""

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..console import log, log_error, number_column, one_line_errors, print_table, progress_bar
from ..csv_files import write_csv
from ..errors import message_of
from ..evaluation.validation_config import ValidationConfig
from .dataclass_options import with_options

if TYPE_CHECKING:
    from ..distributed import DistributedContext
    from ..evaluation.validation import Validation
    from ..evaluation.validation_data import ValidationData

_FAILURES = (ValueError, OSError, RuntimeError, AssertionError)  # timm asserts its settings


@with_options(ValidationConfig)
def validate_models(
    models: Annotated[list[str], typer.Option('--model', help='Architecture or arch.tag; may be repeated.')],
    device: Annotated[str | None, typer.Option(help='cpu, cuda or cuda:<index>; the best one by default.')] = None,
    results_file: Annotated[Path | None, typer.Option(metavar='CSV', help="Write timm's columns.")] = None,
    per_class: Annotated[bool, typer.Option('--per-class', help='Print the accuracy of each class.')] = False,
    as_json: Annotated[bool, typer.Option('--json', help='Print JSON.')] = False,
    **settings: Any,
) -> None:
    """Evaluate models on a data set: top-1, top-5, loss, calibration, accuracy of each class, images per second."""
    from ..distributed import init_distributed

    with one_line_errors(), init_distributed(device) as context:
        config = ValidationConfig(**settings)
        found, failures = _validate_all(models, config, results_file, context)
        if context.is_main:
            failures |= _report(found, failures, results_file, per_class=per_class, as_json=as_json)
            for name, failure in failures.items():
                log_error(f'{name}: {failure}' if name in models and len(models) > 1 else failure)
        context.barrier()  # torchrun ends the other processes as soon as one has failed
    if failures:
        raise typer.Exit(1)


def _open(config: ValidationConfig, results_file: Path | None) -> 'ValidationData':
    from ..evaluation.validation_data import open_validation_data

    if results_file and (results_file.is_dir() or not os.access(results_file.parent, os.W_OK)):
        raise ValueError(f'{results_file}: cannot write results there. Name a file in a writable folder.')
    return open_validation_data(config)


def _validate_all(
    models: Sequence[str], config: ValidationConfig, results_file: Path | None, context: 'DistributedContext'
) -> tuple['list[Validation]', dict[str, str]]:
    """The results, the best first, and the errors by model, or by '' for the data."""
    from ..distributed import fail_together, is_peer_failure
    from ..evaluation.validation import validate

    found, failures = [], {}
    try:
        data = fail_together(context, partial(_open, config, results_file))
    except _FAILURES as error:
        if is_peer_failure(error):
            raise
        return [], {'': message_of(error)}
    for name in dict.fromkeys(models):
        try:
            total = -(-data.images.total // context.size) or None
            with progress_bar(name, total, is_active=context.is_main) as update:
                on_retry = log if context.is_main else None
                found.append(validate(name, config, data, context=context, log=on_retry, on_batch=update))
        except _FAILURES as error:
            if is_peer_failure(error):
                raise
            failures[name] = message_of(error)
    return sorted(found, key=lambda result: result.evaluation.top1, reverse=True), failures


def _report(
    found: 'Sequence[Validation]',
    failures: dict[str, str],
    results_file: Path | None,
    *,
    per_class: bool,
    as_json: bool,
) -> dict[str, str]:
    """Print and write the results; returns an error if they cannot be written."""
    if as_json:
        documents = [_document(result, per_class=per_class) for result in found]
        documents += [dict(model=name, error=text) for name, text in failures.items() if name]
        if documents:
            print(json.dumps(documents, indent=2))
    elif found:
        _print_results(found)
        for result in found if per_class else ():
            _print_classes(result)
    for result in () if as_json else found:
        for name in result.evaluation.bad:
            log(f'{result.model} skipped {name}')
    if results_file and found:
        try:
            rows = [result.row() for result in found]
            write_csv(results_file, [[*rows[0]], *(row.values() for row in rows)])
        except OSError as error:
            return {str(results_file): f'The results were not written: {message_of(error)}'}
    return {}


def _document(result: 'Validation', *, per_class: bool) -> dict[str, Any]:
    evaluation = result.evaluation
    document: dict[str, Any] = dict(
        result.row(),
        count=evaluation.count,
        loss=_finite(evaluation.loss),
        ece=_finite(evaluation.ece),
        images_per_second=round(evaluation.images_per_second, 1),
        batch_size=result.batch_size,
        bad=evaluation.bad,
    )
    if per_class:
        document['per_class'] = [dict(name=name, top1=top1, count=count) for name, top1, count in _classes(result)]
    return document


def _finite(value: float) -> float | None:
    """A number for JSON, which has neither NaN nor infinity."""
    return value if abs(value) < float('inf') else None


def _classes(result: 'Validation') -> list[tuple[str, float | None, int]]:
    """Name, top-1 accuracy and number of images of each class."""
    evaluation = result.evaluation
    names = result.class_names or [str(index) for index in range(len(evaluation.per_class))]
    return [*zip(names, evaluation.per_class, evaluation.confusion.sum(1).tolist(), strict=True)]


def _print_results(found: 'Sequence[Validation]') -> None:
    names = ('top-1', 'top-5', 'loss', 'ECE', 'images', 'size', 'crop', 'M params', 'images/s')
    rows = [
        (
            result.model,
            f'{result.evaluation.top1:.3f}',
            f'{result.evaluation.top5:.3f}',
            f'{result.evaluation.loss:.4f}',
            f'{result.evaluation.ece:.4f}',
            str(result.evaluation.count),
            str(result.img_size),
            f'{result.crop_pct:g}',
            f'{result.param_count / 1e6:.2f}',
            f'{result.evaluation.images_per_second:.1f}',
        )
        for result in found
    ]
    caption = 'top-1, top-5: percent. ECE: expected calibration error.'
    print_table(['model', *map(number_column, names)], rows, caption=caption, min_width=100)


def _print_classes(result: 'Validation') -> None:
    columns = ('class', number_column('top-1'), number_column('images'))
    rows = [(name, '' if top1 is None else f'{top1:.2f}', str(count)) for name, top1, count in _classes(result)]
    print_table(columns, rows, title=result.model, min_width=100)
