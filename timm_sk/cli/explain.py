"""`timm-sk explain`: attention as the object grows, as docs/attention.md describes."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column

from ..atomic_io import require_empty_dir
from ..console import log, number_column, one_line_errors, print_table, progress_bar
from ..evaluation.validation_config import ValidationConfig
from ..optional_packages import require_package
from .chosen_images import NO_MODEL, Images, choose_images

if TYPE_CHECKING:
    from ..explain import Zoom

MODEL_OF_EXAMPLES = 'sknet_atto.shapes'  # its examples are as large as its input; those of sknet_atto.digits are 8x8
DEFAULT_FOLDER = Path('explain')
MAX_IMAGES = 100


def explain_selection(
    images: Images = None,
    model_name: Annotated[
        str | None,
        typer.Option(
            '--model',
            help='Architecture, arch.tag or exported folder; must be named for images and --data. '
            f'Without: {MODEL_OF_EXAMPLES}.',
            show_default=False,
        ),
    ] = None,
    folder: Annotated[Path, typer.Option('--out', metavar='DIR', help='Output folder, new or empty.')] = DEFAULT_FOLDER,
    scales: Annotated[str, typer.Option(help='Zoom factors, at least 1.')] = '1,1.5,2',
    units: Annotated[str | None, typer.Option(help='Units for channels and classes, such as SK_2_3,SK_5_3.')] = None,
    data: Annotated[str | None, typer.Option(help='Data set instead of images, as for validate.')] = None,
    split: Annotated[str, typer.Option(help='Split of the data set.')] = 'validation',
    by_class: Annotated[bool, typer.Option('--by-class', help='Write results of each class too.')] = False,
    shapes: Annotated[int | None, typer.Option(min=1, metavar='N', help='Use N synthetic images of shapes.')] = None,
    data_dir: Annotated[str | None, typer.Option(help='Folder where named data sets are stored.')] = None,
    max_bad_images: Annotated[int, typer.Option(min=0, help='Images of a data set that may be skipped.')] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help='Images of a data set in a batch.')] = 64,
    workers: Annotated[int, typer.Option(min=0, help='Processes that load a data set.')] = 2,
    device: Annotated[str | None, typer.Option(help='cpu, cuda, cuda:<index> or mps; the best one by default.')] = None,
) -> None:
    """Write the attention of the units as the object grows: figures, a CSV of every number and one HTML page.

    Images are cropped to their center. For a data set (--data or --shapes), it writes means with confidence intervals.
    """
    from ..data.images import printable
    from ..data.shapes import CLASS_NAMES
    from ..evaluation.validation_data import open_validation_data
    from ..explain import Zoom, study
    from ..explain.batches import data_batches, shape_batches
    from ..explain.report import PAGE, study_table, write_study
    from ..explain.units import choose_units, unit_names
    from ..factory import ready_model
    from ..inference.prediction import class_names

    with one_line_errors():
        if sum(map(bool, (images, data, shapes))) > 1:
            raise ValueError('Pass only one of images, --data and --shapes.')
        if (images or data) and not model_name:
            raise ValueError(NO_MODEL)
        model_name = model_name or MODEL_OF_EXAMPLES
        if by_class and not (data or shapes):
            raise ValueError('--by-class needs a data set: pass --data or --shapes.')
        require_package('matplotlib', 'explain')
        require_empty_dir(folder)
        paths = [] if data or shapes else choose_images(images, model_name)
        if len(paths) > MAX_IMAGES:
            raise ValueError(f'Too many images: {len(paths)}. Pass at most {MAX_IMAGES}, or a data set with --data.')
        model = ready_model(model_name, device=device)
        zoom = Zoom(model, _numbers(scales))
        wanted = None if units is None else [name.strip() for name in units.split(',')]
        choose_units(unit_names(model), wanted)
        if data or shapes:
            where: dict[str, Any] = dict(device=next(model.parameters()).device, batch_size=batch_size)
            if shapes:
                names, title, total = list(CLASS_NAMES), 'timm_sk.shapes', shapes
                batches = shape_batches(shapes, zoom, **where)
            else:
                config = ValidationConfig(data=str(data), split=split, data_dir=data_dir, batch_size=batch_size)
                opened = open_validation_data(config)
                names, title = opened.class_names or class_names(model), printable(Path(str(data)).name)
                skip, total = _log_skipped(max_bad_images), len(opened.images)
                batches = data_batches(opened.images, zoom, workers=workers, on_bad=skip, **where)
            with progress_bar(model_name, total) as update:
                found = study(model, batches, scales=zoom.scales, class_names=names, units=wanted, on_batch=update)
            write_study(folder, found, model_name=model_name, data_name=title, by_class=by_class)
            caption = f'Mean attention difference, {found.counts.sum()} images; {found.confidence:.0%} intervals.'
            _print(model_name, *study_table(found), caption)
        else:
            _explain(model, zoom, paths, wanted, folder, model_name)
    print(printable(str(folder / PAGE)))


def _explain(
    model: Any, zoom: 'Zoom', paths: list[Path], units: list[str] | None, folder: Path, model_name: str
) -> None:
    """Explain single images."""
    from ..data.images import printable, read_image
    from ..explain import explain_images
    from ..explain.report import explanation_table, write_explanation
    from ..inference.prediction import trained_on

    images = [read_image(path) for path in paths]
    full, short = [printable(str(path)) for path in paths], [printable(path.name) for path in paths]
    with progress_bar(model_name, len(images) * len(zoom.scales)) as update:
        found = explain_images(model, images, scales=zoom.scales, units=units, names=full, on_batch=update)
    names = short if len(set(short)) == len(short) else full
    write_explanation(folder, found, images, names, model_name=model_name)
    mean = f'Mean over {len(images)} images. ' if len(images) > 1 else ''
    caption = f'{mean}Field: side of the effective receptive field, pixels of the input. {trained_on(model)}'
    _print(model_name, *explanation_table(found), caption)


def _log_skipped(limit: int) -> Callable[[str], None]:
    """A function that logs skipped images, and raises ValueError if they are more than the limit."""
    left = iter(range(limit))

    def skip(line: str) -> None:
        if next(left, None) is None:
            raise ValueError(f'{line} Fix or remove it, or allow more with --max-bad-images.')
        log(f'skipped: {line}')

    return skip


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(',')]
    except ValueError as error:
        raise ValueError(f'Invalid scales "{text}": expected numbers separated by commas, such as 1,1.5,2.') from error


def _print(title: str, columns: list[str], rows: list[list[str]], caption: str) -> None:
    shown = [Column(columns[0], no_wrap=True), *map(number_column, columns[1:])]
    print_table(shown, rows, title=title, caption=caption, min_width=1000)  # as wide as the content
