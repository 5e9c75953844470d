"""Compares two checkouts of this project: time of inference and training, and bytes saved for the backward pass.

`python benchmarks/compare_checkouts.py BEFORE AFTER --out compare_checkouts.csv`. Each checkout runs in its own
process; they take turns, one step at a time, so that a disturbance affects both. Ratios of times are BEFORE over AFTER
by round: above 1 AFTER is faster. The ratio of saved bytes is AFTER over BEFORE: below 1 AFTER saves less.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
from importlib.metadata import version
from itertools import product
from pathlib import Path

from timm_sk.inference.autotune import processor

NETS = ('skresnet34', 'skresnext50_32x4d', 'resnest50d')
FORMS = ('eager', 'reparameterized', 'deployed', 'training')

WORKER = """
import sys, time, torch, timm
net, form, memory_format, batch, size, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
import timm_sk
torch.manual_seed(0)
memory_format = getattr(torch, memory_format)
model = timm.create_model(net).to(memory_format=memory_format)
x = torch.randn(int(batch), 3, int(size), int(size)).contiguous(memory_format=memory_format)
labels = torch.zeros(len(x), dtype=torch.long)
kept = {}
def pack(tensor):
    kept[tensor.untyped_storage().data_ptr()] = tensor
    return tensor
def train():
    model.zero_grad()
    torch.nn.functional.cross_entropy(model(x), labels).backward()
def infer():
    with torch.no_grad():
        model(x)
if form == 'training':
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    saved = sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in own)
    kept.clear()
    step = train
else:
    model.eval()
    if form == 'reparameterized':
        model = timm.utils.reparameterize_model(model)
    if form == 'deployed':
        model = timm_sk.deploy(model, batch_size=len(x), input_size=x.shape[1:], compile=False, remember=False,
                               channels_last=memory_format == torch.channels_last, merge_groups=False)
    saved, step = 0, infer
step()
print(saved, flush=True)
for _ in sys.stdin:
    begin = time.perf_counter()
    step()
    print(time.perf_counter() - begin, flush=True)
"""


def measure(checkouts: list[Path], options: argparse.Namespace, net: str, form: str, memory_format: str) -> dict:
    """One row: medians and ratios of a net in a form, over several starts of both processes."""
    arguments = [net, form, memory_format, str(options.batch), str(options.size), str(options.threads)]
    times: list[list[float]] = [[], []]
    for _ in range(options.starts):  # memory addresses differ between processes, which changes times by up to 8 %
        workers = [
            subprocess.Popen(
                [sys.executable, '-W', 'ignore', '-c', WORKER, *arguments],
                cwd=checkout,
                env={**os.environ, 'PYTHONPATH': str(checkout), 'HF_HUB_OFFLINE': '1'},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for checkout in checkouts
        ]
        saved = [int(worker.stdout.readline()) for worker in workers]
        for index in range(options.rounds + 2):
            for worker, taken in zip(workers, times, strict=True):
                print(file=worker.stdin, flush=True)
                seconds = float(worker.stdout.readline())
                if index > 1:
                    taken.append(seconds)
        for worker in workers:
            worker.communicate()
    before, after = times
    ratios = sorted(b / a for b, a in zip(before, after, strict=True))
    return dict(
        net=net,
        form=form,
        memory_format=memory_format,
        batch=options.batch,
        size=options.size,
        threads=options.threads,
        starts=options.starts,
        rounds=options.rounds,
        before_ms=round(1e3 * statistics.median(before), 2),
        after_ms=round(1e3 * statistics.median(after), 2),
        ratio_min=round(ratios[0], 3),
        ratio_median=round(statistics.median(ratios), 3),
        ratio_max=round(ratios[-1], 3),
        ratio_of_minima=round(min(before) / min(after), 3),
        saved_ratio=round(saved[1] / saved[0], 4) if saved[0] else '',
        processor=processor()[0],
        torch=version('torch'),
        timm=version('timm'),
    )


def main() -> None:
    """Measure every net in every form, print a line for each, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('before', type=Path)
    parser.add_argument('after', type=Path)
    parser.add_argument('--nets', nargs='+', default=NETS)
    parser.add_argument('--forms', nargs='+', default=FORMS, choices=FORMS)
    parser.add_argument('--formats', nargs='+', default=['channels_last', 'contiguous_format'])
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--starts', type=int, default=4)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--out', type=Path, metavar='CSV', help='add each row to this file')
    options = parser.parse_args()
    for net, form, memory_format in product(options.nets, options.forms, options.formats):
        row = measure([options.before.resolve(), options.after.resolve()], options, net, form, memory_format)
        print(*row.values(), flush=True)
        if options.out:
            new = not options.out.exists()
            with options.out.open('a', newline='') as file:
                writer = csv.DictWriter(file, row)
                if new:
                    writer.writeheader()
                writer.writerow(row)


if __name__ == '__main__':
    main()
