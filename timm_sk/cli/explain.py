"""`timm-sk explain`: what the selection does as the object grows; docs/attention.md says how to read it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column

from ..atomic_io import require_empty_dir
from ..console import log, number_column, one_line_errors, print_table, progress_bar
from ..data.images import find_images, read_image
from ..data.shapes import CLASS_NAMES
from ..evaluation.validation_config import ValidationConfig
from ..evaluation.validation_data import open_validation_data
from ..explain import Enlarging, explain_pictures, study
from ..explain.batches import data_batches, shape_batches
from ..explain.figures import require_matplotlib
from ..explain.report import (
    PAGE,
    explanation_table,
    study_cells,
    study_heads,
    write_explanation,
    write_study,
)
from ..explain.units import choose_units, unit_names
from ..factory import ready_model
from ..inference.prediction import class_names, example_images

DEFAULT_MODEL = 'sknet_atto.shapes'  # whose examples are as large as its input; those of sknet_atto.digits are 8x8
DEFAULT_FOLDER = Path('explain')
MOST_PICTURES = 100


def explain_selection(
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar='IMAGE', help='Files, folders or patterns; none for the shipped examples.'),
    ] = None,
    model_name: Annotated[str, typer.Option('--model', help='Model: architecture or arch.tag.')] = DEFAULT_MODEL,
    folder: Annotated[Path, typer.Option('--out', metavar='DIR', help='A new folder to write.')] = DEFAULT_FOLDER,
    scales: Annotated[str, typer.Option(help='How much larger the object shall be.')] = '1,1.5,2',
    units: Annotated[str | None, typer.Option(help='Units for channels and classes, such as SK_2_3,SK_5_3.')] = None,
    data: Annotated[str | None, typer.Option(help='A data set instead of pictures, as for validate.')] = None,
    split: Annotated[str, typer.Option(help='Split of the data set.')] = 'validation',
    by_class: Annotated[bool, typer.Option('--by-class', help='Tell the classes of a data set apart.')] = False,
    shapes: Annotated[int | None, typer.Option(min=1, metavar='N', help='Draw N shapes as the data set.')] = None,
    data_dir: Annotated[str | None, typer.Option(help='Where a data set that has a name is kept.')] = None,
    max_bad_images: Annotated[int, typer.Option(min=0, help='Pictures of a data set that may be skipped.')] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help='Pictures in a batch of a data set.')] = 64,
    workers: Annotated[int, typer.Option(min=0, help='Processes that load a data set.')] = 2,
    device: Annotated[str | None, typer.Option(help='cpu, cuda, mps; the best one if not given.')] = None,
) -> None:
    """Show what the units select as the object grows: figures, a CSV of every number and one HTML page.

    Of pictures the middle is enlarged. Of a data set (--data or --shapes) there are means with confidence intervals.
    """
    with one_line_errors():
        if sum(map(bool, (images, data, shapes))) > 1:
            raise ValueError('Name pictures, or --data, or --shapes: one of them.')
        if by_class and not (data or shapes):
            raise ValueError('--by-class tells apart the classes of a data set: name one with --data, or --shapes.')
        require_matplotlib()
        require_empty_dir(folder)
        model = ready_model(model_name, device=device)
        enlarging = Enlarging(model, _numbers(scales))
        wanted = None if units is None else [name.strip() for name in units.split(',')]
        choose_units(unit_names(model), wanted)
        if data or shapes:
            parameter = next(model.parameters())
            where: dict[str, Any] = dict(device=parameter.device, dtype=parameter.dtype, batch_size=batch_size)
            if shapes:
                names, title, total = list(CLASS_NAMES), 'timm_sk.shapes', shapes
                batches = shape_batches(shapes, enlarging, **where)
            else:
                config = ValidationConfig(data=str(data), split=split, data_dir=data_dir, batch_size=batch_size)
                opened = open_validation_data(config)
                names, title = opened.class_names or class_names(model), Path(str(data)).name
                skip, total = _Skips(max_bad_images), len(opened.images)
                batches = data_batches(opened.images, enlarging, workers=workers, on_bad=skip, **where)
            with progress_bar(model_name, total) as update:
                found = study(
                    model,
                    batches,
                    scales=enlarging.scales,
                    class_names=names,
                    units=wanted,
                    on_batch=update,
                )
            write_study(folder, found, model_name=model_name, data_name=title, by_class=by_class)
            caption = f'Mean attention difference, {found.counts.sum()} pictures; {found.confidence:.0%} intervals.'
            _print(model_name, study_heads(found), study_cells(found), caption)
        else:
            _explain(model, enlarging, images, wanted, folder, model_name)
    print(folder / PAGE)


def _explain(
    model: Any, enlarging: Enlarging, images: list[str] | None, units: list[str] | None, folder: Path, model_name: str
) -> None:
    """Explain single pictures."""
    paths = list(find_images(images)) if images else example_images(model_name)
    if not paths:
        raise ValueError(f'{model_name} ships with no examples: name pictures to explain.')
    if len(paths) > MOST_PICTURES:
        raise ValueError(f'{len(paths)} pictures are more than {MOST_PICTURES}: study them as a data set, with --data.')
    pictures = [read_image(path) for path in paths]
    with progress_bar(model_name, len(pictures) * len(enlarging.scales)) as update:
        found = explain_pictures(
            model,
            pictures,
            scales=enlarging.scales,
            units=units,
            names=[str(path) for path in paths],
            on_batch=update,
        )
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    write_explanation(folder, found, pictures, names, model_name=model_name)
    of = f'Mean over {len(pictures)} pictures. ' if len(pictures) > 1 else ''
    caption = f'{of}Field: side of the effective receptive field, pixels of the input.'
    _print(model_name, *explanation_table(found), caption)


class _Skips:
    """Tells of pictures that are left out, until they are too many.

    Args:
        most: How many may be.
    """

    def __init__(self, most: int) -> None:
        self.left = most

    def __call__(self, line: str) -> None:
        if not self.left:
            raise ValueError(f'{line} Mend or remove it, or allow more with --max-bad-images.')
        self.left -= 1
        log(f'left out: {line}')


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(',')]
    except ValueError as error:
        raise ValueError(f'Scales are numbers separated by commas, such as 1,1.5,2; got "{text}".') from error


def _print(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> None:
    columns = [Column(heads[0], no_wrap=True), *map(number_column, heads[1:])]
    print_table(columns, rows, title=title, caption=caption, min_width=1000)  # as wide as the content
