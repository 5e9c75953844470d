"""Selective kernels on CIFAR-10 in small: plain, squeeze-and-excitation and selective-kernel nets on one trunk.

    python benchmarks/cifar_study.py ../cifar10/train.tar ../cifar10/test.tar

trains each net for a few epochs on half of the training images of each class, from the same seeds, in the same order
and with the same augmentation, and evaluates the last weights on the test images, once. Rows are appended to
`benchmarks/cifar_study.csv`; a run that is there is not repeated, so an interrupted study goes on with this command.
Two runs go on at the same time, with a thread each: together 1.2 times as many steps as one run with two threads.
`--costs`, on an idle machine, writes parameters, multiply-adds, memory and the time of a training step of each net to
`benchmarks/cifar_study_costs.csv`. `--report` prints the tables of docs/cifar.md and draws its chart.
"""

import csv
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import timm.data
import torch
import torch.nn.functional as F
import typer
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from timm_sk.bench.machine import describe
from timm_sk.bench.memory import saved_bytes
from timm_sk.csv_files import write_csv
from timm_sk.models.costs import count_macs
from timm_sk.models.sk_blocks import SelectiveKernelBottleneck
from timm_sk.models.sknet_cifar import CifarResNet

HERE = Path(__file__).parent
RESULTS, COSTS = HERE / 'cifar_study.csv', HERE / 'cifar_study_costs.csv'
CHART = HERE.parent / 'docs' / 'cifar_study.svg'
COLUMNS = ('net', 'seed', 'top1', 'loss', 'seconds', 'processor')
SEEDS, ROUNDS, PROCESSES = range(5), 9, 2
EPOCHS, BATCH, PEAK_LR, WEIGHT_DECAY, SMOOTHING, PADDING = 8, 128, 0.2, 5e-4, 0.1, 4
MEAN, STD = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD


def trunk(block: Callable[..., nn.Module], *, width: int = 16, **kwargs: Any) -> nn.Module:
    """The trunk of `sknet17_1x32d` with three blocks and half the channels; `width` is the first 3x3 convolution's."""
    base_width = 8 * width  # for 64 channels, of which the first stage has 8
    return CifarResNet(
        block, [1, 1, 1], num_classes=10, channels=(8, 16, 32), base_width=base_width, zero_init_last=False, **kwargs
    )


def selective(kernel_size: list[int], *, attention: bool = True) -> nn.Module:
    """The trunk with SK units of these kernels, each a 3x3 kernel with dilation."""
    sk_kwargs = dict(kernel_size=kernel_size, rd_divisor=32, split_input=False, attention=attention)
    return trunk(SelectiveKernelBottleneck, block_args=dict(sk_kwargs=sk_kwargs))


COMPARED: dict[str, Callable[[], nn.Module]] = {
    'plain': lambda: trunk(Bottleneck),
    'plain, wider': lambda: trunk(Bottleneck, width=21),
    'SE': lambda: trunk(Bottleneck, block_args=dict(attn_layer='se')),
    'SK': lambda: selective([3, 5]),
}
ABLATIONS: dict[str, Callable[[], nn.Module]] = {
    'M=1': lambda: selective([3]),
    'M=3': lambda: selective([3, 5, 7]),
    'M=2, second dilation 1': lambda: selective([3, 3]),
    'M=2, second dilation 3': lambda: selective([3, 7]),
    'M=2, plain sum': lambda: selective([3, 5], attention=False),
    'M=3, plain sum': lambda: selective([3, 5, 7], attention=False),
}


def read_images(path: Path, fraction: float = 1.0) -> tuple[Tensor, Tensor]:
    """8-bit images [N, 32, 32, 3] and labels [N] of the first images of each class."""
    dataset = timm.data.create_dataset('', str(path))
    pairs = [(np.asarray(image.convert('RGB')), label) for image, label in dataset]
    labels = np.array([label for _, label in pairs])
    parts = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    chosen = np.concatenate([part[: round(fraction * len(part))] for part in parts])
    return torch.from_numpy(np.stack([pairs[index][0] for index in chosen])), torch.from_numpy(labels[chosen])


def normalized(images: Tensor) -> Tensor:
    """8-bit images [B, H, W, C] as inputs [B, C, H, W] in channels-last memory format."""
    return ((images.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)


def batches(images: Tensor, labels: Tensor, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch in a new order: images padded, cropped and flipped at random."""
    span = torch.arange(images.shape[1])
    order = torch.randperm(len(images), generator=generator)
    for chosen in order.split(BATCH)[: len(images) // BATCH]:
        padded = F.pad(images[chosen], (0, 0, PADDING, PADDING, PADDING, PADDING))
        top, left = torch.randint(0, 2 * PADDING + 1, (2, len(chosen), 1), generator=generator)
        columns = left + span
        flips = torch.rand(len(chosen), 1, generator=generator) < 0.5
        columns = torch.where(flips, columns.flip(1), columns)
        cropped = padded[torch.arange(len(chosen))[:, None, None], (top + span)[:, :, None], columns[:, None, :]]
        yield normalized(cropped), labels[chosen]


def step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor) -> None:
    """A training step: forward pass in bfloat16, backward pass, new weights."""
    with torch.autocast('cpu', torch.bfloat16):
        logits = model(inputs)
    F.cross_entropy(logits.float(), targets, label_smoothing=SMOOTHING).backward()
    optimizer.step()
    optimizer.zero_grad()


def build(name: str, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A net with random weights in train mode, and its optimizer."""
    torch.manual_seed(seed)
    model = (COMPARED | ABLATIONS)[name]().train().to(memory_format=torch.channels_last)
    return model, torch.optim.SGD(
        model.parameters(), lr=PEAK_LR, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY
    )


def train(name: str, images: Tensor, labels: Tensor, seed: int) -> nn.Module:
    """Train a net from its seed."""
    model, optimizer = build(name, seed)
    model.compile()
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps, cycle_momentum=False)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for inputs, targets in batches(images, labels, generator):
            step(model, optimizer, inputs, targets)
            schedule.step()
    return model


@torch.inference_mode()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Top-1 in percent and the mean loss, in float32."""
    model.eval()
    logits = torch.cat([model(normalized(part)) for part in images.split(500)])
    return 100 * (logits.argmax(1) == labels).double().mean().item(), F.cross_entropy(logits, labels).item()


def run(net: tuple[str, int], train_images: Path, test_images: Path) -> dict[str, Any]:
    """Train and evaluate one net, given by name and seed, with one thread; returns its row."""
    torch.set_num_threads(1)
    name, seed = net
    training, test = read_images(train_images, 0.5), read_images(test_images)
    start = time.perf_counter()
    top1, loss = evaluate(train(name, *training, seed), *test)
    return dict(
        net=name,
        seed=seed,
        top1=f'{top1:.2f}',
        loss=f'{loss:.4f}',
        seconds=f'{time.perf_counter() - start:.0f}',
        processor=describe(torch.device('cpu'))['processor'],
    )


def measure_costs() -> list[dict[str, Any]]:
    """Parameters, multiply-adds, memory and the milliseconds of a training step; the nets take turns."""
    nets = {name: build(name) for name in COMPARED | ABLATIONS}
    inputs = torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    targets = torch.arange(BATCH) % 10
    times: dict[str, list[float]] = {name: [] for name in nets}
    for _ in range(ROUNDS + 2):
        for name, (model, optimizer) in nets.items():
            start = time.perf_counter()
            step(model, optimizer, inputs, targets)
            times[name].append(1e3 * (time.perf_counter() - start))
    rows = []
    for name, (model, _) in nets.items():
        with torch.autocast('cpu', torch.bfloat16):
            saved = saved_bytes(lambda model=model: model(inputs), excluded=[*model.parameters(), *model.buffers()])
        measured = times[name][2:]
        rows.append(
            dict(
                net=name,
                params=sum(parameter.numel() for parameter in model.parameters()),
                macs=count_macs(model.eval(), (3, 32, 32)),
                saved_bytes_per_image=round(saved / BATCH),
                step_ms_min=f'{min(measured):.1f}',
                step_ms_median=f'{statistics.median(measured):.1f}',
                step_ms_max=f'{max(measured):.1f}',
                processor=describe(torch.device('cpu'))['processor'],
            )
        )
    return rows


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


def report(rows: list[dict[str, str]], costs: list[dict[str, str]]) -> str:
    """Markdown tables of the comparison and of the ablations; writes the chart."""
    from scipy.stats import ttest_1samp

    rows = sorted(rows, key=lambda row: int(row['seed']))
    top1 = {name: [float(row['top1']) for row in rows if row['net'] == name] for name in COMPARED | ABLATIONS}
    facts = {row['net']: row for row in costs}
    lines = [
        '| net | top-1, mean of 5 seeds | lowest to highest | SK minus it, 95 % interval | params | M multiply-adds | '
        'ms per step | kB per image |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for name in COMPARED:
        found, row = top1[name], facts[name]
        text = '-'
        if name != 'SK':
            gains = [own - other for own, other in zip(top1['SK'], found, strict=True)]
            low, high = ttest_1samp(gains, 0).confidence_interval(0.95)
            text = f'{statistics.mean(gains):+.2f} ({low:+.2f} to {high:+.2f})'
        lines.append(
            f'| {name} | {statistics.mean(found):.2f} | {min(found):.2f} to {max(found):.2f} | {text} | '
            f'{int(row["params"]):,} | {int(row["macs"]) / 1e6:.1f} | {float(row["step_ms_median"]):.0f} | '
            f'{int(row["saved_bytes_per_image"]) / 1e3:.0f} |'
        )
    lines += ['', '| net, one seed | top-1 | params | M multiply-adds |', '|---|---|---|---|']
    single = {name: top1[name][0] for name in ABLATIONS} | {'M=2, second dilation 2 (SK above)': top1['SK'][0]}
    for name, value in sorted(single.items()):
        row = facts.get(name, facts['SK'])
        lines.append(f'| {name} | {value:.2f} | {int(row["params"]):,} | {int(row["macs"]) / 1e6:.1f} |')
    _draw(top1)
    return '\n'.join(lines)


def _draw(top1: dict[str, list[float]]) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({'svg.hashsalt': 'cifar'}):
        figure = Figure(figsize=(6, 2.6), layout='constrained')
        axes = figure.add_subplot()
        for height, name in enumerate(reversed(COMPARED)):
            axes.plot(top1[name], [height] * len(top1[name]), 'o', alpha=0.6, color='tab:blue')
            axes.plot(statistics.mean(top1[name]), height, '|', markersize=22, color='black')
        axes.set_yticks(range(len(COMPARED)), [*reversed(COMPARED)])
        axes.set_ylim(-0.5, len(COMPARED) - 0.5)
        axes.set_xlabel('top-1 on the test images, percent: five seeds and their mean')
        figure.savefig(CHART, metadata={'Date': None})


def main(
    train_images: Annotated[Path | None, typer.Argument(help='Folder or tar of the training images.')] = None,
    test_images: Annotated[Path | None, typer.Argument(help='Folder or tar of the test images.')] = None,
    only_costs: Annotated[bool, typer.Option('--costs', help='Measure the costs instead.')] = False,
    only_report: Annotated[bool, typer.Option('--report', help='Print the tables of the finished runs.')] = False,
) -> None:
    """Compare plain, SE and SK nets on CIFAR-10, and ablate the SK net."""
    if only_costs:
        rows = measure_costs()
        write_csv(COSTS, [rows[0], *(row.values() for row in rows)])
        return
    rows = read_rows(RESULTS)
    if only_report:
        print(report(rows, read_rows(COSTS)))
        return
    if train_images is None or test_images is None:
        raise typer.BadParameter('name the training and the test images')
    done = {(row['net'], int(row['seed'])) for row in rows}
    planned = [(name, seed) for seed in SEEDS for name in COMPARED] + [(name, SEEDS[0]) for name in ABLATIONS]
    left = [net for net in planned if net not in done]
    run_net = partial(run, train_images=train_images, test_images=test_images)
    with RESULTS.open('a', newline='') as file, get_context('spawn').Pool(PROCESSES, maxtasksperchild=1) as pool:
        writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
        if not rows:
            writer.writeheader()
        for row in pool.imap_unordered(run_net, left):
            writer.writerow(row)
            file.flush()
            print(*row.values(), flush=True)


if __name__ == '__main__':
    typer.run(main)
