"""Inference engines on a CPU: timm's nets and ours in PyTorch, ONNX Runtime and OpenVINO, in float32 and int8.

`python benchmarks/engines.py skresnet34 --out benchmarks/engines.csv` needs the extra `openvino`. All forms run in one
process, in turn, with the same weights and input; only those whose outputs match timm's are timed. `ratio` is the time
of `timm_sk.deploy` in float32 over that of the form, round by round: above 1 is faster than it. `peak_bytes` is the
resident memory that the form, its weights and its libraries add to a process that has imported torch and timm, at its
peak while it infers. `--other-quantizers` adds NNCF and torchao's PT2E with their defaults
(`pip install nncf torchao`).
"""

import argparse
import copy
import csv
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import timm_sk
from timm_sk import shapes
from timm_sk.bench.counterparts import build
from timm_sk.bench.machine import describe
from timm_sk.bench.random_weights import fill
from timm_sk.inference.engine_choice import pick_engine
from timm_sk.inference.engines import ENGINES, EngineModel
from timm_sk.inference.graph_export import write_onnx
from timm_sk.inference.timing import interleave, ratios, summarize

COLUMNS = (
    *('net', 'form', 'batch', 'size', 'rounds', 'difference', 'min_ms', 'median_ms', 'max_ms'),
    *('ratio_min', 'ratio_median', 'ratio_max', 'peak_bytes', 'file_bytes', 'nodes'),
    *('processor', 'threads', 'versions', 'date'),
)
BASELINE = 'ours deploy'
AUTO = 'ours auto'
TOLERANCE = {'float32': 1e-4, 'int8': 0.2}  # of the largest output; int8 with random weights is only a sanity check


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('nets', nargs='+')
    parser.add_argument('--batches', type=int, nargs='+', default=[1, 8])
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--rounds', type=int, default=11)
    parser.add_argument('--other-quantizers', action='store_true')
    parser.add_argument('--out', type=Path, default=Path('engines.csv'))
    parser.add_argument('--peak', help=argparse.SUPPRESS)  # the form that this process, a child, runs
    parser.add_argument('--folder', type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        models = Models(arguments.nets[0], arguments.size, arguments.folder, only_memory=True)
        print(peak(models, arguments.peak, arguments.batches[0]))
        return
    is_new = not arguments.out.exists()
    with arguments.out.open('a', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
        if is_new:
            writer.writeheader()
        for net in arguments.nets:
            with tempfile.TemporaryDirectory() as folder:
                models = Models(net, arguments.size, Path(folder))
                models.export(arguments.other_quantizers)
                for batch in arguments.batches:
                    for row in measure(models, batch, arguments.rounds):
                        writer.writerow(row)
                        print(row['net'], row['form'], row['batch'], *(row[name] for name in COLUMNS[5:12]))
                    file.flush()


class Models:
    """One net with random weights, and its exports."""

    def __init__(self, net: str, size: int, folder: Path, *, only_memory: bool = False) -> None:
        self.net, self.size, self.only_memory = net, size, only_memory
        self.folder, self.shape = folder, (3, size, size)
        self.builders: dict[str, Callable[[int], Any]] = {
            'timm eager': lambda batch: self.timm,
            'timm compiled': lambda batch: torch.compile(copy.deepcopy(self.timm)),
            BASELINE: lambda batch: timm_sk.deploy(self.ours, batch_size=batch, input_size=self.shape),
        }
        for path in sorted(folder.glob('*.onnx')):
            self._add_file(path)

    @cached_property
    def calibration(self) -> Tensor:
        """Drawn images, on which an export is checked too: on noise, random weights would round otherwise."""
        drawn, _ = shapes.draw(64, seed=1, size=self.size)
        return torch.from_numpy(drawn).permute(0, 3, 1, 2).contiguous() / 127.5 - 1

    @cached_property
    def ours(self) -> Any:
        model = build('ours', self.net).eval()
        return model if self.only_memory else fill(model, self.calibration[:8]).eval()

    @cached_property
    def timm(self) -> Any:
        model = build('timm', self.net).eval()
        if not self.only_memory:
            model.load_state_dict(self.ours.state_dict())
        return model

    def _add_file(self, path: Path) -> None:
        for engine in ENGINES:
            self.builders[f'{path.stem} {engine}'] = lambda batch, engine=engine: EngineModel(path, engine)

    def export(self, other_quantizers: bool) -> None:
        """Write the ONNX models that the engines run."""
        x, batches = self.calibration[:2], self.calibration.split(8)
        timms = self.folder / 'timm.onnx'
        self._add_file(write_onnx(copy.deepcopy(self.timm), x, timms, dynamic_size=False, metadata={}))
        self._add_file(timm_sk.export(self.ours, self.folder / 'ours.onnx', input_size=self.shape))
        quantized = timm_sk.quantize(self.ours, batches, input_size=self.shape, engine='onnxruntime')
        self._add_file(timm_sk.export(quantized, self.folder / 'ours int8.onnx'))
        if other_quantizers:
            import nncf
            import onnx

            dataset = nncf.Dataset([batch.numpy() for batch in batches], lambda batch: {'images': batch})
            found = nncf.quantize(onnx.load(self.folder / 'ours.onnx'), dataset, subset_size=len(batches))
            onnx.save(found, self.folder / 'nncf int8.onnx')
            self._add_file(self.folder / 'nncf int8.onnx')
            self.builders['pt2e int8'] = self._pt2e

    def _pt2e(self, batch: int) -> Any:
        import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        program = torch.export.export(copy.deepcopy(self.timm), (self.calibration[:batch],)).module()
        prepared = prepare_pt2e(program, quantizer)
        for images in self.calibration.split(batch)[:8]:
            prepared(images)
        with torch._inductor.config.patch(freezing=True):
            compiled = torch.compile(convert_pt2e(prepared))
            compiled(self.calibration[:batch])
        return compiled


def peak(models: 'Models', form: str, batch: int) -> int:
    """Resident bytes that a form adds to this process: the largest while it infers, less those before it is loaded."""
    before, x = _resident('VmRSS'), torch.zeros(batch, *models.shape)
    with torch.no_grad():
        call = models.builders[form](batch)
        call(x)
        Path('/proc/self/clear_refs').write_text('5')  # the peak begins anew
        for _ in range(3):
            call(x)
    return _resident('VmHWM') - before


def _resident(kind: str) -> int:
    (kib,) = re.findall(rf'{kind}:\s+(\d+) kB', Path('/proc/self/status').read_text())
    return 1024 * int(kib)


def _peak_in_child(models: 'Models', form: str, batch: int) -> int:
    command = [sys.executable, __file__, models.net, '--peak', form, '--batches', str(batch)]
    done = subprocess.run(
        [*command, '--size', str(models.size), '--folder', models.folder], check=True, capture_output=True, text=True
    )
    return int(done.stdout.splitlines()[-1])


def measure(models: Models, batch: int, rounds: int) -> list[dict[str, Any]]:
    """Rows of all forms for one batch size."""
    x = models.calibration[-batch:]
    with torch.no_grad():
        expected = models.timm(x)
        forms = {name: build(batch) for name, build in models.builders.items()}
        deployed = forms[BASELINE]
        forms[AUTO] = pick_engine(models.ours, [batch, *models.shape], lambda: deployed, options={}, remember=False)
        differences = {}
        for name, form in forms.items():
            differences[name] = ((form(x) - expected).abs().max() / expected.abs().max()).item()
            if not differences[name] <= TOLERANCE['int8' if 'int8' in name else 'float32']:
                raise SystemExit(f'{models.net} {name} differs by {differences[name]:.1e}: not timed.')
        steps = {name: lambda index, form=form: form(x) for name, form in forms.items()}
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
        row |= dict(zip(('min_ms', 'median_ms', 'max_ms'), map('{:.4g}'.format, summarize(taken)), strict=True))
        spread = summarize(ratios(taken, times[BASELINE]))
        row |= dict(zip(('ratio_min', 'ratio_median', 'ratio_max'), map('{:.4g}'.format, spread), strict=True))
        stem, _, engine = name.rpartition(' ')
        path = models.folder / f'{stem}.onnx'
        is_file = engine in ENGINES
        if is_file:
            row |= dict(file_bytes=path.stat().st_size, nodes=_nodes(path))
        if name == AUTO:
            row['form'] = f'{AUTO}: {getattr(forms[AUTO], "engine", "torch")}'
        elif name in (BASELINE, 'timm eager') or is_file:
            row['peak_bytes'] = _peak_in_child(models, name, batch)
        rows.append(row)
    return rows


def _nodes(path: Path) -> int:
    import onnx

    return len(onnx.load(path, load_external_data=False).graph.node)


if __name__ == '__main__':
    main()
