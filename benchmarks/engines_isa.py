"""int8 in OpenVINO on processors with fewer instructions: oneDNN, which computes it, can be told what to use.

`python benchmarks/engines_isa.py skresnet34 --out benchmarks/engines_isa.csv` needs the extra `openvino`. Each limit
gets a process of its own. PyTorch's convolutions and OpenVINO keep to it, ONNX Runtime does not. `ratio` is the time of
`timm_sk.deploy` in PyTorch over a form's, round by round, with random weights.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from engines import BASELINE, Models

from timm_sk.inference.timing import interleave, ratios, summarize

LIMITS = ('ALL', 'AVX512_CORE_VNNI', 'AVX512_CORE')
FORMS = (BASELINE, 'timm openvino', 'ours openvino', 'ours int8 openvino', 'ours int8 onnxruntime')
COLUMNS = ('net', 'limit', 'batch', 'form', 'median_ms', 'ratio_min', 'ratio_median', 'ratio_max')


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('nets', nargs='+')
    parser.add_argument('--limits', nargs='+', default=LIMITS)
    parser.add_argument('--batches', type=int, nargs='+', default=[1, 8])
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--out', type=Path, default=Path('engines_isa.csv'))
    parser.add_argument('--folder', type=Path, help=argparse.SUPPRESS)  # of exports, for a child
    arguments = parser.parse_args()
    if arguments.folder:
        models = Models(arguments.nets[0], 224, arguments.folder)
        csv.writer(sys.stdout).writerows(measure(models, arguments.batches[0], arguments.rounds))
        return
    with arguments.out.open('w', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(COLUMNS)
        for net in arguments.nets:
            with tempfile.TemporaryDirectory() as folder:
                Models(net, 224, Path(folder)).export(other_quantizers=False)
                for limit in arguments.limits:
                    for batch in arguments.batches:
                        command = [sys.executable, __file__, net, '--folder', folder, '--batches', str(batch)]
                        done = subprocess.run(
                            [*command, '--rounds', str(arguments.rounds)],
                            env=os.environ | dict(ONEDNN_MAX_CPU_ISA=limit),
                            check=True,
                            stdout=subprocess.PIPE,
                            text=True,
                        )
                        for row in csv.reader(done.stdout.splitlines()[-len(FORMS) :]):
                            writer.writerow([net, limit, batch, *row])
                        file.flush()


def measure(models: Models, batch: int, rounds: int) -> list[list[Any]]:
    """The last five columns, of each form."""
    x = models.calibration[-batch:]
    with torch.no_grad():
        forms = {name: models.builders[name](batch) for name in FORMS}
        steps = {name: lambda index, form=form: form(x) for name, form in forms.items()}
        times, _ = interleave(steps, rounds=rounds, device=torch.device('cpu'))
    return [
        [name, f'{summarize(taken)[1]:.4g}', *(f'{ratio:.4g}' for ratio in summarize(ratios(taken, times[BASELINE])))]
        for name, taken in times.items()
    ]


if __name__ == '__main__':
    main()
