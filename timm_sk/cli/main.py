"""The command line `timm-sk`. Commands parse options, call the library and print the results."""

import json
import runpy
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column

from .. import __version__
from ..console import log_error, one_line_errors, print_table, progress_bar
from ..data.images import find_images
from ..factory import ready_model
from ..inference.prediction import Prediction, example_images, predict
from ..models.listing import COLUMNS, cells, markdown
from ..pretrained.lookup import search_rows
from . import bench, demo, explain, finetune, publish, validate, weights

DEFAULT_MODEL = 'sknet_atto.digits'

app = typer.Typer(
    help='Selective-kernel networks for timm.',
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
weights.app.add_typer(publish.app)
app.add_typer(weights.app, name='weights')
app.command('bench')(bench.bench)
app.command('demo')(demo.demo)
app.command('explain')(explain.explain_selection)
app.command('finetune')(finetune.finetune_model)
app.command('validate')(validate.validate_models)


def main() -> None:
    """Run the command line."""
    app(prog_name='timm-sk')


@app.callback(invoke_without_command=True)
def show_version(
    version: Annotated[bool, typer.Option('--version', help='Show the version and exit.')] = False,
) -> None:
    """Selective-kernel networks for timm."""
    if version:
        print(__version__)
        raise typer.Exit


@app.command('list')
def list_models(
    pattern: Annotated[str, typer.Argument(metavar='FILTER', help='Part of a name, or a pattern such as "sk*".')] = '',
    as_markdown: Annotated[bool, typer.Option('--markdown', help='Print the table of the README.')] = False,
) -> None:
    """List the models: parameters, multiply-adds, where the weights are, accuracy."""
    with one_line_errors():
        rows = search_rows(pattern)
        if not rows:
            raise ValueError(f'No model matches "{pattern}"; `timm-sk list` shows all.')
    if as_markdown:
        print(markdown(rows))
    else:
        print_table(COLUMNS, map(cells, rows), caption='GMACs: 10^9 multiply-adds at this input. top-1: percent.')


@app.command('predict')
def predict_images(
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar='IMAGE', help="Files, folders or patterns; the model's examples by default."),
    ] = None,
    model_name: Annotated[str, typer.Option('--model', help='Model: architecture or arch.tag.')] = DEFAULT_MODEL,
    topk: Annotated[int, typer.Option(min=1, help='Number of classes to print.')] = 5,
    device: Annotated[str | None, typer.Option(help='cpu, cuda, cuda:<index> or mps; the best one by default.')] = None,
    as_json: Annotated[bool, typer.Option('--json', help='Print JSON.')] = False,
) -> None:
    """Classify images."""
    with one_line_errors():
        paths = list(find_images(images)) if images else example_images(model_name)
        if not paths:
            raise ValueError(f'{model_name} has no example images: name images to classify.')
        model = ready_model(model_name, device=device)
        predictions = []
        with progress_bar('Classifying', len(paths)) as update:
            for prediction in predict(model, paths, topk=topk):
                predictions.append(prediction)
                update(1)
    truths = None if images else [path.stem for path in paths]
    if as_json:
        print(json.dumps(_as_json(predictions, truths), indent=2))
    elif not all(prediction.error for prediction in predictions):
        _print_predictions(model_name, predictions, truths)
    failures = [prediction.error for prediction in predictions if prediction.error]
    for failure in failures:
        log_error(failure)
    if failures:
        raise typer.Exit(1)


def _as_json(predictions: list[Prediction], truths: list[str] | None) -> list[dict[str, Any]]:
    documents: list[dict[str, Any]] = []
    for index, prediction in enumerate(predictions):
        document: dict[str, Any] = dict(file=str(prediction.path))
        if truths:
            document['truth'] = truths[index]
        if prediction.error:
            document['error'] = prediction.error
        else:
            pairs = zip(prediction.labels, prediction.probabilities, strict=True)
            document['predictions'] = [dict(label=label, probability=probability) for label, probability in pairs]
        documents.append(document)
    return documents


def _print_predictions(model_name: str, predictions: list[Prediction], truths: list[str] | None) -> None:
    rows = []
    for index, prediction in enumerate(predictions):
        if prediction.error:
            continue
        pairs = zip(prediction.labels, prediction.probabilities, strict=True)
        first, *others = [f'{label} ({probability:.1%})' for label, probability in pairs]
        name = prediction.path.name if truths else str(prediction.path)
        rows.append([name, *([truths[index]] if truths else []), first, ', '.join(others)])
    names = ('truth', 'prediction', 'runners-up') if truths else ('prediction', 'runners-up')
    columns = (Column('image', overflow='fold'), *map(Column, names))
    print_table(columns, rows, title=model_name)


@app.command('run', context_settings=dict(ignore_unknown_options=True, allow_interspersed_args=False))
def run_script(
    script: Annotated[str, typer.Argument(metavar='SCRIPT', help='A Python file.')],
    arguments: Annotated[list[str] | None, typer.Argument(metavar='ARGS', help='Arguments of the script.')] = None,
) -> None:
    """Run a Python script, such as timm's validate.py, with the models of timm_sk registered.

    Processes that the script spawns must import timm_sk themselves; forked ones have it.
    """
    with one_line_errors():
        if not Path(script).is_file():
            raise FileNotFoundError(f'No such file: {script}')
    sys.argv = [script, *(arguments or [])]
    sys.path.insert(0, str(Path(script).resolve().parent))
    try:
        runpy.run_path(script, run_name='__main__')
    except EOFError as error:  # which typer takes for a user who aborts
        sys.excepthook(type(error), error, error.__traceback__)
        raise SystemExit(1) from error
