"""The command line `timm-sk`. Commands parse options, call the library and print the results."""

import json
import re
import runpy
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
import typer.core

from ..console import log, log_error, one_line_errors, print_table, progress_bar, set_quiet
from ..errors import nearest
from ..version import __version__
from . import bench, demo, explain, export, finetune, publish, validate, weights
from .chosen_images import NO_MODEL, Images, choose_images
from .commands import Quiet, command

if TYPE_CHECKING:
    from ..inference.prediction import Prediction

MODELS_OF_EXAMPLES = ('sknet_atto.digits', 'sknet17_1x32d.cifar10')
NEXT = (
    'Next: `timm-sk predict IMAGE --model sknet17_1x32d.cifar10`, `timm-sk list` for all models, README.md for other '
    'tasks.'
)


class _Commands(typer.core.TyperGroup):
    """The commands. They refuse addresses, which they would take as paths; the arguments of `run` are the script's."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        for before, argument in pairwise(args) if args[0] != 'run' else ():
            if re.match(r'\w+://', argument) and before != '--origin':
                log_error(f'{argument}: addresses are not supported. Download the file, and name it.')
                raise typer.Exit(1)
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Commands,
    help='Selective-kernel networks for timm.',
    epilog='Exit codes: 0 success, 1 failure, 2 usage error, 130 interrupted.',
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=dict(help_option_names=['-h', '--help']),
)
weights.app.add_typer(publish.app)
app.add_typer(weights.app, name='weights')
_COMMANDS: dict[str, tuple[Any, ...]] = {
    'bench': (bench.bench, 'timm-sk bench skresnet34 --forms eager,compiled --out cpu.csv', 'timm-sk bench --smoke'),
    'demo': (demo.demo, 'timm-sk demo', 'timm-sk demo --model sknet_atto.digits --port 8000'),
    'explain': (
        explain.explain_selection,
        'timm-sk explain photos/ --model skresnet34 --out report',
        'timm-sk explain --data imagenet --model skresnet34',
    ),
    'export': (
        export.export_model,
        'timm-sk export skresnet34 net.onnx',
        'timm-sk export skresnet34 net.xml --int8 --calibrate photos/',
    ),
    'finetune': (
        finetune.finetune_model,
        'timm-sk finetune photos --model skresnet34',
        'timm-sk finetune photos --model skresnet34 --linear-probe --epochs 5',
    ),
    'validate': (
        validate.validate_models,
        'timm-sk validate photos --model skresnet34',
        'timm-sk validate imagenet --model skresnet34 --model resnest50d --results-file results.csv',
    ),
}
for _name, (_function, *_examples) in _COMMANDS.items():
    command(app, _name, *_examples)(_function)


def main() -> None:
    """Run the command line."""
    app(prog_name='timm-sk')


@app.callback(invoke_without_command=True)
def show_version(
    version: Annotated[bool, typer.Option('--version', '-V', help='Show the version and exit.')] = False,
    quiet: Quiet = False,
) -> None:
    """Selective-kernel networks for timm."""
    set_quiet(quiet)
    if version:
        print(__version__)
        raise typer.Exit


@command(app, 'list', 'timm-sk list "skresn*"', 'timm-sk list resnest --json')
def list_models(
    pattern: Annotated[str, typer.Argument(metavar='FILTER', help='Part of a name, or a pattern such as "sk*".')] = '',
    as_markdown: Annotated[bool, typer.Option('--markdown', help='Print the table of docs/models.md.')] = False,
    as_json: Annotated[bool, typer.Option('--json', help='Print JSON.')] = False,
) -> None:
    """List the models: parameters, multiply-adds, where the weights are, accuracy."""
    from ..models.listing import COLUMNS, cells, describe, markdown
    from ..pretrained.lookup import search_rows
    from ..registry import architectures

    with one_line_errors():
        rows = search_rows(pattern)
        if not rows:
            near = nearest(pattern, architectures())
            raise ValueError(f'No model matches "{pattern}".{near} `timm-sk list` shows all.')
    if as_json:
        print(json.dumps([*map(describe, rows)], indent=2))
    elif as_markdown:
        print(markdown(rows))
    else:
        print_table(COLUMNS, map(cells, rows), caption='GMACs: 10^9 multiply-adds at this input. top-1: percent.')


@command(app, 'predict', 'timm-sk predict', 'timm-sk predict photos/ --model skresnet34 --topk 3 --json')
def predict_images(
    images: Images = None,
    model_name: Annotated[
        str | None,
        typer.Option(
            '--model',
            help='Architecture, arch.tag or exported folder; must be named for images. '
            f'Without: {" and ".join(MODELS_OF_EXAMPLES)}.',
            show_default=False,
        ),
    ] = None,
    topk: Annotated[int, typer.Option(min=1, help='Number of classes to print.')] = 5,
    device: Annotated[str | None, typer.Option(help='cpu, cuda, cuda:<index> or mps; the best one by default.')] = None,
    as_json: Annotated[bool, typer.Option('--json', help='Print JSON.')] = False,
) -> None:
    """Classify images."""
    from ..factory import ready_model
    from ..inference.prediction import iter_predictions, trained_on

    results = []
    with one_line_errors():
        if images and not model_name:
            raise ValueError(NO_MODEL)
        for name in [model_name] if model_name else MODELS_OF_EXAMPLES:
            paths = choose_images(images, name)
            model = ready_model(name, device=device)
            if topk > (num_classes := cast(int, model.num_classes)):
                log(f'{name} has {num_classes} classes: --topk {topk} shows all of them.')
            predictions = []
            with progress_bar('Classifying', len(paths)) as update:
                for prediction in iter_predictions(model, paths, topk=topk):
                    predictions.append(prediction)
                    update(1)
            results.append((name, predictions, trained_on(model)))
    everything = [prediction for _, predictions, _ in results for prediction in predictions]
    if as_json:
        print(json.dumps([_document(prediction, is_example=not images) for prediction in everything], indent=2))
    else:
        for name, predictions, caption in results:
            rows = [_cells(prediction, is_example=not images) for prediction in predictions if not prediction.error]
            columns = ('image', *(() if images else ('truth',)), 'prediction', 'runners-up')
            if rows:
                print_table(columns, rows, title=name, caption=caption)
    failures = [prediction.error for prediction in everything if prediction.error]
    for failure in failures:
        log_error(failure)
    if failures:
        raise typer.Exit(1)
    if not (images or model_name or as_json):
        log(NEXT)


def _document(prediction: 'Prediction', *, is_example: bool) -> dict[str, Any]:
    document: dict[str, Any] = dict(file=str(prediction.path))
    if is_example:
        document['truth'] = cast(Path, prediction.path).stem
    if prediction.error:
        return document | dict(error=prediction.error)
    pairs = zip(prediction.labels, prediction.probabilities, strict=True)
    return document | dict(predictions=[dict(label=label, probability=probability) for label, probability in pairs])


def _cells(prediction: 'Prediction', *, is_example: bool) -> list[str]:
    path = cast(Path, prediction.path)
    pairs = zip(prediction.labels, prediction.probabilities, strict=True)
    first, *others = [f'{label} ({probability:.1%})' for label, probability in pairs]
    return [*([path.name, path.stem] if is_example else [str(path)]), first, ', '.join(others)]


@command(
    app,
    'run',
    'timm-sk run validate.py imagenet --model skresnet34',
    context_settings=dict(ignore_unknown_options=True, allow_interspersed_args=False),
)
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
    except Exception as error:  # report it as Python does: its traceback begins in the script
        frames = error.__traceback__
        while frames and frames.tb_frame.f_code.co_filename != script:
            frames = frames.tb_next
        if frames is None and not isinstance(error, SyntaxError):  # such as in a zip
            frames = error.__traceback__
        sys.excepthook(type(error), error.with_traceback(frames), frames)
        raise SystemExit(1) from error
