"""`timm-sk validate`: judge models by a data set; docs/validate.md says what and how."""

import csv
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column

from ..console import log, log_error, number_column, one_line_errors, print_table, progress_bar
from ..distributed import DistributedContext, fail_together, init_distributed, is_peer_failure
from ..evaluation.imagenet_labels import LABELS
from ..evaluation.validation import AMP_DTYPES, COLUMNS, INTERPOLATIONS, Validation, validate
from ..evaluation.validation_data import ValidationData, open_validation_data

_FAILURES = (ValueError, OSError, RuntimeError, AssertionError)  # the last one is how timm refuses settings


def validate_models(
    data: Annotated[str, typer.Argument(metavar='DATA', help='Folder or tar, or torch/, hfds/, wds/, hfids/, tfds/…')],
    models: Annotated[list[str], typer.Option('--model', help='Architecture or arch.tag; may be repeated.')],
    split: Annotated[str, typer.Option(help='Split that judges.')] = 'validation',
    data_dir: Annotated[str | None, typer.Option(help='Where a data set that has a name is kept.')] = None,
    dataset_download: Annotated[bool, typer.Option('--dataset-download', help='Download it if it is missing.')] = False,
    class_map: Annotated[str | None, typer.Option(help='File that lists the names of the classes.')] = None,
    num_samples: Annotated[int | None, typer.Option(min=1, help='Images of a stream that does not say.')] = None,
    max_bad_images: Annotated[int, typer.Option(min=0, help='Unreadable images to skip before it stops.')] = 0,
    labels: Annotated[str | None, typer.Option(help=f"Labels of ImageNet's: {', '.join(LABELS)}.")] = None,
    real_json: Annotated[str | None, typer.Option(help="File of ReaL labels instead of timm's.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help='File of weights for the model.')] = None,
    use_ema: Annotated[bool, typer.Option('--use-ema', help="The file's averaged weights, if it has any.")] = False,
    num_classes: Annotated[int | None, typer.Option(min=1, help='Of a model with --checkpoint.')] = None,
    img_size: Annotated[int | None, typer.Option(min=1, help="Height and width; else the checkpoint's.")] = None,
    crop_pct: Annotated[float | None, typer.Option(help='Share of the shorter side that the crop keeps.')] = None,
    interpolation: Annotated[str | None, typer.Option(help=f'Of {", ".join(INTERPOLATIONS)}.')] = None,
    use_train_size: Annotated[bool, typer.Option('--use-train-size', help='Size and crop of training.')] = False,
    reparam: Annotated[bool, typer.Option('--reparam', help='Reparameterize the model.')] = False,
    channels_last: Annotated[bool | None, typer.Option(help='Memory format; on CUDA by itself.')] = None,
    amp: Annotated[bool, typer.Option('--amp', help='Mixed precision.')] = False,
    amp_dtype: Annotated[str, typer.Option(help=f'{" or ".join(AMP_DTYPES)}.')] = AMP_DTYPES[0],
    device: Annotated[str | None, typer.Option(help='cpu, cuda or cuda:1; the best one if not given.')] = None,
    batch_size: Annotated[int, typer.Option(min=1, help='Images in a batch of one process.')] = 64,
    workers: Annotated[int, typer.Option(min=0, help='Processes that load, for each that judges.')] = 2,
    retry: Annotated[bool, typer.Option('--retry', help='Smaller batches where memory lacks.')] = False,
    results_file: Annotated[Path | None, typer.Option(metavar='CSV', help="Write timm's columns.")] = None,
    per_class: Annotated[bool, typer.Option('--per-class', help='Accuracy of each class too.')] = False,
    as_json: Annotated[bool, typer.Option('--json', help='Print JSON.')] = False,
) -> None:
    """Judge models by a data set: top-1, top-5, loss, calibration, accuracy of each class, images per second."""
    settings: dict[str, Any] = dict(
        checkpoint=checkpoint,
        use_ema=use_ema,
        num_classes=num_classes,
        img_size=img_size,
        crop_pct=crop_pct,
        interpolation=interpolation,
        use_train_size=use_train_size,
        reparam=reparam,
        channels_last=channels_last,
        amp=amp,
        amp_dtype=amp_dtype,
        batch_size=batch_size,
        workers=workers,
        max_bad_images=max_bad_images,
        retry=retry,
    )
    with one_line_errors(), init_distributed(device) as context:
        opened = partial(
            _opened,
            results_file,
            data,
            split=split,
            labels=labels,
            real_json=real_json,
            data_dir=data_dir,
            class_map=class_map,
            download=dataset_download,
            num_samples=num_samples,
            batch_size=batch_size,
        )
        found, failures = _validated(models, opened, context, settings)
        if context.is_main:
            failures |= _report(found, failures, results_file, per_class=per_class, as_json=as_json)
            for name, failure in failures.items():
                log_error(f'{name}: {failure}' if name in models and len(models) > 1 else failure)
        context.barrier()  # torchrun ends the others as soon as one has failed
    if failures:
        raise typer.Exit(1)


def _opened(results_file: Path | None, data: str, **options: Any) -> ValidationData:
    if results_file and (results_file.is_dir() or not os.access(results_file.parent, os.W_OK)):
        raise ValueError(f'{results_file}: no results can be written there. Name a file in a folder that can be.')
    return open_validation_data(data, **options)


def _validated(
    models: Sequence[str], opened: Callable[[], ValidationData], context: DistributedContext, settings: dict[str, Any]
) -> tuple[list[Validation], dict[str, str]]:
    """The results, the best first, and why others failed, by model or ''."""
    found, failures = [], {}
    try:
        data = fail_together(context, opened)
    except _FAILURES as error:
        if is_peer_failure(error):
            raise
        return [], {'': str(error)}
    for name in dict.fromkeys(models):
        try:
            total = -(-data.images.total // context.size) or None
            with progress_bar(name, total, is_active=context.is_main) as update:
                say = log if context.is_main else None
                found.append(validate(name, data, context=context, on_batch=update, say=say, **settings))
        except _FAILURES as error:
            if is_peer_failure(error):
                raise
            failures[name] = str(error) or type(error).__name__
    return sorted(found, key=lambda result: result.evaluation.top1, reverse=True), failures


def _report(
    found: Sequence[Validation], failures: dict[str, str], results_file: Path | None, *, per_class: bool, as_json: bool
) -> dict[str, str]:
    """Print and write the results; gives why they could not be written, if so."""
    if as_json:
        documents = [_document(result, per_class=per_class) for result in found]
        documents += [dict(model=name, error=text) for name, text in failures.items() if name]
        if documents:
            print(json.dumps(documents, indent=2))
    elif found:
        _print_table(found)
        for result in found if per_class else ():
            _print_classes(result)
    for result in () if as_json else found:
        for name in result.evaluation.bad:
            log(f'{result.model} did not see {name}')
    if results_file and found:
        try:
            with results_file.open('w', newline='', encoding='utf-8') as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(result.row() for result in found)
        except OSError as error:
            return {str(results_file): f'The results were not written: {error}'}
    return {}


def _document(result: Validation, *, per_class: bool) -> dict[str, Any]:
    evaluation = result.evaluation
    document: dict[str, Any] = dict(
        result.row(),
        count=evaluation.count,
        loss=_number(evaluation.loss),
        ece=_number(evaluation.ece),
        images_per_second=round(evaluation.images_per_second, 1),
        batch_size=result.batch_size,
        bad=evaluation.bad,
    )
    if per_class:
        names = _names(result)
        totals = evaluation.confusion.sum(1).tolist()
        rows = zip(names, evaluation.per_class, totals, strict=True)
        document['per_class'] = [dict(name=name, top1=top1, count=total) for name, top1, total in rows]
    return document


def _number(value: float) -> float | None:
    """A number as JSON has it, which knows neither nan nor infinity."""
    return value if abs(value) < float('inf') else None


def _names(result: Validation) -> list[str]:
    return result.class_names or [str(index) for index in range(len(result.evaluation.per_class))]


def _print_table(found: Sequence[Validation]) -> None:
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
    columns = (Column('model', overflow='fold'), *map(number_column, names))
    caption = 'top-1, top-5: percent. ECE: expected calibration error.'
    print_table(columns, rows, caption=caption, min_width=100)


def _print_classes(result: Validation) -> None:
    columns = (Column('class', overflow='fold'), number_column('top-1'), number_column('images'))
    totals = result.evaluation.confusion.sum(1).tolist()
    rows = [
        (name, '' if top1 is None else f'{top1:.2f}', str(total))
        for name, top1, total in zip(_names(result), result.evaluation.per_class, totals, strict=True)
    ]
    print_table(columns, rows, title=result.model, min_width=100)
