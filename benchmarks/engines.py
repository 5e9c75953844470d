"""Inference engines on a CPU: timm's nets and ours in PyTorch, ONNX Runtime and OpenVINO, in float32 and int8.

`python benchmarks/engines.py skresnet34 --out benchmarks/engines.csv` needs the extra `openvino`. All forms run in one
process, in turn, with the same weights and input; only those whose outputs match timm's are timed. `ratio` is the time
of `timm_sk.deploy` in float32 over that of the form, round by round: above 1 is faster than it.
"""

import argparse
import copy
import csv
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import timm_sk
from timm_sk.bench.counterparts import build
from timm_sk.bench.machine import describe
from timm_sk.bench.random_weights import fill
from timm_sk.inference.engines import EngineModel
from timm_sk.inference.graph_export import write_onnx
from timm_sk.inference.timing import interleave, ratios, summarize

COLUMNS = (
    *('net', 'form', 'batch', 'size', 'rounds', 'difference', 'min_ms', 'median_ms', 'max_ms'),
    *('ratio_min', 'ratio_median', 'ratio_max', 'file_bytes', 'nodes', 'processor', 'threads', 'versions', 'date'),
)
BASELINE = 'ours deploy'
TOLERANCE = {'float32': 1e-4, 'int8': 0.2}  # of the largest output; int8 with random weights is only a sanity check


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('nets', nargs='+')
    parser.add_argument('--batches', type=int, nargs='+', default=[1, 8])
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--rounds', type=int, default=11)
    parser.add_argument('--out', type=Path, required=True)
    arguments = parser.parse_args()
    is_new = not arguments.out.exists()
    with arguments.out.open('a', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
        if is_new:
            writer.writeheader()
        for net in arguments.nets:
            with tempfile.TemporaryDirectory() as folder:
                models = _Models(net, arguments.size, Path(folder))
                for batch in arguments.batches:
                    for row in measure(models, batch, arguments.rounds):
                        writer.writerow(row)
                        print(row['net'], row['form'], row['batch'], *(row[name] for name in COLUMNS[5:12]))
                    file.flush()


class _Models:
    """One net with random weights, and its exports."""

    def __init__(self, net: str, size: int, folder: Path) -> None:
        self.net, self.size = net, size
        calibration = torch.randn(64, 3, size, size, generator=torch.Generator().manual_seed(1))
        self.ours: Any = fill(build('ours', net), calibration[:8]).eval()
        self.timm: Any = build('timm', net).eval()
        self.timm.load_state_dict(self.ours.state_dict())
        shape = (3, size, size)
        x = calibration[:2]
        self.files = {
            'timm': write_onnx(copy.deepcopy(self.timm), x, folder / 'timm.onnx'),
            'ours': timm_sk.export(self.ours, folder / 'ours.onnx', input_size=shape),
        }
        quantized = timm_sk.quantize(self.ours, calibration.split(8), input_size=shape, engine='onnxruntime')
        self.files['ours int8'] = timm_sk.export(quantized, folder / 'int8.onnx')

    def forms(self, batch: int) -> dict[str, Callable[[Tensor], Any]]:
        shape = (3, self.size, self.size)
        found: dict[str, Callable[[Tensor], Any]] = {
            'timm eager': self.timm,
            'timm compiled': torch.compile(copy.deepcopy(self.timm)),
            BASELINE: timm_sk.deploy(self.ours, batch_size=batch, input_size=shape),
        }
        for engine in ('onnxruntime', 'openvino'):
            found |= {f'{name} {engine}': EngineModel(path, engine) for name, path in self.files.items()}
        return found


def measure(models: _Models, batch: int, rounds: int) -> list[dict[str, Any]]:
    """Rows of all forms for one batch size."""
    x = torch.randn(batch, 3, models.size, models.size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = models.timm(x)
        forms = models.forms(batch)
        differences = {}
        for name, form in forms.items():
            differences[name] = ((form(x) - expected).abs().max() / expected.abs().max()).item()
            if not differences[name] <= TOLERANCE['int8' if 'int8' in name else 'float32']:
                raise SystemExit(f'{models.net} {name} differs by {differences[name]:.1e}: not timed.')
        steps = {name: _step(form, x) for name, form in forms.items()}
        times, _ = interleave(steps, rounds=rounds, device=torch.device('cpu'))
    machine = describe(torch.device('cpu'))
    packages = ('torch', 'timm', 'onnxruntime', 'openvino')
    shared = dict(
        net=models.net,
        batch=batch,
        size=models.size,
        rounds=rounds,
        processor=machine['processor'],
        threads=machine['threads'],
        versions=', '.join(f'{package} {version(package)}' for package in packages),
        date=machine['date'],
    )
    rows = []
    for name, taken in times.items():
        row: dict[str, Any] = shared | dict(form=name, difference=f'{differences[name]:.1e}')
        row |= dict(zip(('min_ms', 'median_ms', 'max_ms'), map(_text, summarize(taken)), strict=True))
        spread = summarize(ratios(taken, times[BASELINE]))
        row |= dict(zip(('ratio_min', 'ratio_median', 'ratio_max'), map(_text, spread), strict=True))
        path = models.files.get(name.rpartition(' ')[0])
        if path is not None:
            row |= dict(file_bytes=path.stat().st_size, nodes=_nodes(path))
        rows.append(row)
    return rows


def _step(form: Callable[[Tensor], Any], x: Tensor) -> Callable[[int], Any]:
    return lambda index: form(x)


def _nodes(path: Path) -> int:
    import onnx

    return len(onnx.load(path, load_external_data=False).graph.node)


def _text(value: float) -> str:
    return f'{value:.4g}'


if __name__ == '__main__':
    main()
