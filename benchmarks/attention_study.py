"""Speed of `timm_sk.explain.study` on a data set, compared with plain forward passes of the same images.

`PYTHONPATH=. python benchmarks/attention_study.py --out benchmarks/attention_study.csv`. Plain passes, passes with
recorded attention, and the whole study take turns, on batches in memory and on JPEG files, which are drawn from a seed
into a temporary folder.
"""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from benchmarks.input_pipeline import draw_folder, spread
from timm_sk import record_attention, shapes
from timm_sk.bench.machine import describe
from timm_sk.bench.results import Measurement, append, require_appendable
from timm_sk.console import one_line_errors
from timm_sk.data import open_dataset
from timm_sk.devices import open_device
from timm_sk.explain import Zoom, study
from timm_sk.explain.batches import data_batches
from timm_sk.factory import ready_model
from timm_sk.inference.timing import MIN_ROUNDS, interleave, ratios

Batches = Iterable[tuple[Sequence[Tensor], Tensor]]
Source = Callable[[], Batches]
Name = tuple[str, str]  # what is measured, and the source of its images


@dataclass(kw_only=True)
class StudyRow(Measurement):
    """One kind of pass over all images at all scales, over all rounds.

    Attributes:
        what: 'plain' forward passes, 'recording' of attention in them, or the 'study'.
        source: 'ready' for batches in memory, or 'files'.
        count: Number of images in a round.
        scales: Number of scales.
        min_images_per_s: Speed of the slowest round, each image counted once for all scales; median and max alike.
        min_of_plain: Lowest speed as a share of the plain passes' in the same round; median and max alike.
    """

    what: str
    source: str
    model: str
    batch: int
    size: int
    file_size: int
    workers: int
    count: int
    scales: int
    rounds: int
    min_images_per_s: float
    median_images_per_s: float
    max_images_per_s: float
    min_of_plain: float
    median_of_plain: float
    max_of_plain: float


@torch.inference_mode()
def plain(model: nn.Module, source: Source) -> None:
    """Forward passes alone."""
    for images, _ in source():
        for x in images:
            model(x)


@torch.inference_mode()
def recording(model: nn.Module, source: Source) -> None:
    """Forward passes with the attention of all units recorded."""
    with record_attention(model) as units:
        for images, _ in source():
            units.clear()
            for x in images:
                model(x)


def measure(model: nn.Module, zoom: Zoom, sources: dict[str, Source], *, rounds: int | None) -> dict[Name, list[float]]:
    """Milliseconds of each round by what is measured and the source of images; without rounds all run once."""

    def whole_study(model: nn.Module, source: Source) -> None:
        study(model, source(), scales=zoom.scales, class_names=shapes.CLASS_NAMES)

    doing = {'plain': plain, 'recording': recording, 'study': whole_study}
    device = next(model.parameters()).device
    found: dict[Name, list[float]] = {}
    for place, source in sources.items():
        timed = {(what, place): lambda index, do=do, source=source: do(model, source) for what, do in doing.items()}
        if rounds is None:
            for step in timed.values():
                step(0)
        else:
            found |= interleave(timed, rounds=rounds, device=device)[0]
    return found


def rows(found: dict[Name, list[float]], *, count: int, device: torch.device, **setting: object) -> list[StudyRow]:
    """A row for each measurement."""
    made = []
    for (what, place), times in found.items():
        made.append(
            StudyRow(
                what=what,
                source=place,
                count=count,
                rounds=len(times),
                **spread('images_per_s', [1e3 * count / time for time in times]),
                **spread('of_plain', ratios(times, found['plain', place])),
                **setting,
                **describe(device),
            )
        )
    return made


def main(
    model: Annotated[str, typer.Option(help='Model to study.')] = 'sknet_atto.shapes',
    pretrained: Annotated[bool, typer.Option(help='Load its weights, which do not change the time.')] = True,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    images: Annotated[int, typer.Option(min=1, help='JPEG files to draw.')] = 512,
    file_size: Annotated[int, typer.Option(min=8, help='Height and width of the files.')] = 64,
    workers: Annotated[int, typer.Option(min=0, help='Loading processes.')] = 1,
    rounds: Annotated[int, typer.Option(min=1, help='Timed rounds, at least 7.')] = MIN_ROUNDS,
    threads: Annotated[int, typer.Option(min=1, help='CPU threads of the model.')] = 2,
    device: Annotated[str, typer.Option(help='cpu, cuda or cuda:<index>.')] = 'cpu',
    smoke: Annotated[bool, typer.Option('--smoke', help='Run everything once, without timing.')] = False,
    out: Annotated[Path | None, typer.Option(metavar='CSV', help='Add the rows to this file.')] = None,
) -> None:
    """Measure, print and write."""
    with one_line_errors():
        where = open_device(device, ('cpu', 'cuda'))
        if out:
            require_appendable(out, StudyRow.columns())
        torch.set_num_threads(threads)
        net = ready_model(model, pretrained, device=where)
        zoom = Zoom(net)
        with tempfile.TemporaryDirectory() as folder:
            draw_folder(Path(folder), images, file_size)
            opened = open_dataset(folder, split='validation')
            loading = partial(data_batches, opened, zoom, device=where, batch_size=batch_size)
            ready = list(loading(workers=0))
            sources: dict[str, Source] = {'ready': lambda: ready, 'files': partial(loading, workers=workers)}
            found = measure(net, zoom, sources, rounds=None if smoke else rounds)
        made = rows(
            found,
            count=images,
            device=where,
            model=model,
            batch=batch_size,
            size=zoom.input_size[0],
            file_size=file_size,
            workers=workers,
            scales=len(zoom.scales),
        )
        if out:
            append(out, made)
    print('what      source    images/s       min-max  of plain       min-max')
    for row in made:
        speed = f'{row.median_images_per_s:9.1f} {row.min_images_per_s:6.1f}-{row.max_images_per_s:.1f}'
        share = f'{row.median_of_plain:8.1%} {row.min_of_plain:.1%}-{row.max_of_plain:.1%}'
        print(f'{row.what:9} {row.source:8} {speed:23} {share}')


if __name__ == '__main__':
    typer.run(main)
