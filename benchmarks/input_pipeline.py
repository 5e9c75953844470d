"""Speed of loading images and of training on them, and how long training waits for batches.

`python benchmarks/input_pipeline.py --out benchmarks/input_pipeline.csv`. Images are drawn from a seed into a temporary
folder. The step alone on a batch in memory, loading alone, and both together take turns, round after round.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import timm
import torch
import typer
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor
from torch.nn.functional import cross_entropy

import timm_sk  # noqa: F401  (registers the models)
from timm_sk import shapes
from timm_sk.bench.machine import describe
from timm_sk.bench.results import Measurement, append, require_appendable
from timm_sk.console import one_line_errors
from timm_sk.data import Batch, ImageDataset, Loader, normalizer, open_dataset, train_loader
from timm_sk.devices import open_device
from timm_sk.distributed import DistributedContext
from timm_sk.inference.timing import MIN_ROUNDS, require_rounds, summarize

AHEAD = 2  # batches that a worker loads ahead; as many are not timed at the start and at the end
ALONE = 4  # times as many batches if they are only loaded, which is faster than a step

Name = tuple[str, int | None]  # what is measured, and with how many workers


@dataclass(kw_only=True)
class PipelineRow(Measurement):
    """The step, loading or both, over all rounds.

    Attributes:
        what: 'step' on a batch in memory, 'loading' alone, or 'both'.
        workers: Processes that load; none in a step.
        batch: Batch size.
        size: Height and width of the model's input.
        file_size: Height and width of the JPEG files.
        augmentation: timm's name of the policy, after a random crop and flip.
        rounds: Timed rounds.
        batches: Timed batches of a round.
        min_images_per_s: Speed of the slowest round.
        min_waiting: Smallest share of a round's time that was spent waiting for a batch; median and max alike.
    """

    what: str
    model: str
    workers: int | None
    batch: int
    size: int
    file_size: int
    augmentation: str
    rounds: int
    batches: int
    min_images_per_s: float
    median_images_per_s: float
    max_images_per_s: float
    min_waiting: float | None = None
    median_waiting: float | None = None
    max_waiting: float | None = None


class Timing(NamedTuple):
    """Seconds of a round, and those spent waiting for a batch."""

    seconds: float
    waiting: float = 0.0


Step = Callable[[Batch], object]


def draw_folder(root: Path, count: int, file_size: int) -> None:
    """Write JPEG images of shapes, in a folder for each class."""
    for number, (pixels, label) in enumerate(zip(*shapes.draw(count, seed=0, size=file_size), strict=True)):
        folder = root / shapes.CLASS_NAMES[label]
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f'{number:04}.jpg', quality=90)


def training_step(model: str, device: torch.device) -> Step:
    """A step of SGD on a batch as it was loaded: normalized on the device, forward, backward, update."""
    net = timm.create_model(model, num_classes=len(shapes.CLASS_NAMES)).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.train().parameters(), lr=1e-3, momentum=0.9)
    config = resolve_model_data_config(net)
    normalize = normalizer(config['mean'], config['std'], device, channels_last=True)

    def step(batch: Batch) -> Tensor:
        loss = cross_entropy(net(normalize(batch.images)), batch.targets.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # waits for a GPU
        return loss

    return step


def loading(loader: Loader, batches: int, epoch: int, step: Step = lambda batch: None) -> Timing:
    """Load an epoch, with a step on each batch or none, and time the batches in its middle."""
    found = loader.epoch(epoch)
    first = (len(loader) - batches) // 2
    for _ in range(first):
        step(next(found))
    waiting, began = 0.0, time.perf_counter()
    for _ in range(batches):
        before = time.perf_counter()
        batch = next(found)
        waiting += time.perf_counter() - before
        step(batch)
    taken = Timing(time.perf_counter() - began, waiting)
    for _ in found:  # else the workers would disturb the next measurement
        pass
    return taken


def stepping(step: Step, batch: Batch, batches: int) -> Timing:
    """Steps on a batch in memory."""
    began = time.perf_counter()
    for _ in range(batches):
        step(batch)
    return Timing(time.perf_counter() - began)


def measure(
    images: ImageDataset,
    *,
    model: str,
    workers: list[int],
    with_step: list[int],
    batch_size: int,
    size: int,
    augmentation: str,
    batches: int,
    rounds: int,
    device: torch.device,
) -> dict[Name, list[Timing]]:
    """Measure the step alone, loading alone for each number of workers, and both for some numbers, in turn.

    Raises:
        ValueError: If there are too few images for so many batches.
    """
    needed = batch_size * (ALONE * batches + 2 * AHEAD * max(*workers, *with_step, 1))
    if len(images) < needed:
        raise ValueError(f'A round loads {needed} images, got {len(images)}: draw more, or time fewer batches.')
    transform = create_transform((3, size, size), is_training=True, use_prefetcher=True, auto_augment=augmentation)
    step = training_step(model, device)

    def loader(count: int, steps: int) -> Loader:
        few = images.subset(range(batch_size * (steps + 2 * AHEAD * max(count, 1))))
        return train_loader(
            few, transform, batch_size=batch_size, context=DistributedContext(device=device), seed=0, workers=count
        )

    alone = {count: loader(count, ALONE * batches) for count in workers}
    together = {count: loader(count, batches) for count in with_step}
    batch = next(loader(0, batches).epoch(0))
    stepping(step, batch, 2)
    found: dict[Name, list[Timing]] = {}
    for number in range(rounds + 1):  # the first starts the workers, and is not counted
        taken: dict[Name, Timing] = {('step', None): stepping(step, batch, batches)}
        taken |= {('loading', count): loading(alone[count], ALONE * batches, number) for count in workers}
        taken |= {('both', count): loading(together[count], batches, number, step) for count in with_step}
        for name, one in taken.items() if number else ():
            found.setdefault(name, []).append(one)
    return found


def spread(of: str, values: Sequence[float]) -> dict[str, float]:
    """Minimum, median and maximum, by the names of their columns."""
    return dict(zip((f'min_{of}', f'median_{of}', f'max_{of}'), summarize(values), strict=True))


def rows(
    found: dict[Name, list[Timing]], *, batches: int, device: torch.device, **setting: object
) -> list[PipelineRow]:
    """A row for each measurement."""
    made = []
    for (what, workers), taken in found.items():
        timed = batches * (ALONE if what == 'loading' else 1)
        waiting = spread('waiting', [one.waiting / one.seconds for one in taken]) if what == 'both' else {}
        made.append(
            PipelineRow(
                what=what,
                workers=workers,
                rounds=len(taken),
                batches=timed,
                **spread('images_per_s', [timed * setting['batch'] / one.seconds for one in taken]),
                **waiting,
                **setting,
                **describe(device),
            )
        )
    return made


def main(
    model: Annotated[str, typer.Option(help='Model to train.')] = 'skresnet18',
    workers: Annotated[str, typer.Option(help='Numbers of loading processes, separated by commas.')] = '0,1,2',
    with_step: Annotated[str, typer.Option(help='The same, for loading during training.')] = '1',
    batch_size: Annotated[int, typer.Option(min=2)] = 16,
    size: Annotated[int, typer.Option(min=32, help="Height and width of the model's input.")] = 224,
    augmentation: Annotated[str, typer.Option(help="timm's name of the policy.")] = 'rand-m9-mstd0.5',
    images: Annotated[int, typer.Option(min=1, help='JPEG files to draw.')] = 512,
    file_size: Annotated[int, typer.Option(min=8, help='Height and width of the files.')] = 256,
    batches: Annotated[int, typer.Option(min=1, help='Steps of a round.')] = 4,
    rounds: Annotated[int, typer.Option(min=1, help='Timed rounds, at least 7.')] = MIN_ROUNDS,
    threads: Annotated[int, typer.Option(min=1, help='CPU threads of the step.')] = 1,
    device: Annotated[str, typer.Option(help='cpu, cuda or cuda:<index>.')] = 'cpu',
    smoke: Annotated[bool, typer.Option('--smoke', help='Allow fewer rounds (smoke test).')] = False,
    out: Annotated[Path | None, typer.Option(metavar='CSV', help='Add the rows to this file.')] = None,
) -> None:
    """Measure, print and write."""
    with one_line_errors():
        where = open_device(device, ('cpu', 'cuda'))
        if not smoke:
            require_rounds(rounds)
        if out:
            require_appendable(out, PipelineRow.columns())
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        setting = dict(model=model, size=size, augmentation=augmentation)
        with tempfile.TemporaryDirectory() as folder:
            draw_folder(Path(folder), images, file_size)
            opened = open_dataset(folder, split='train')
            found = measure(
                opened,
                **setting,
                workers=[*map(int, workers.split(','))],
                with_step=[*map(int, with_step.split(','))],
                batch_size=batch_size,
                batches=batches,
                rounds=rounds,
                device=where,
            )
        made = rows(found, batches=batches, device=where, batch=batch_size, file_size=file_size, **setting)
        if out:
            append(out, made)
    print(
        f'{model}, batch {batch_size}, {size}x{size}, {made[0].processor}, {made[0].threads} threads, {rounds} rounds'
    )
    print('what     workers  images/s       min-max  waiting       min-max')
    for row in made:
        speed = f'{row.median_images_per_s:9.1f} {row.min_images_per_s:6.1f}-{row.max_images_per_s:.1f}'
        share = f'{row.median_waiting:8.2%} {row.min_waiting:.2%}-{row.max_waiting:.2%}' if row.what == 'both' else ''
        print(f'{row.what:8} {"" if row.workers is None else row.workers:>7} {speed:23} {share}'.rstrip())


if __name__ == '__main__':
    typer.run(main)
