"""examples/slurm.sh with stand-ins for SLURM's commands, on one node."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from finetune_runs import draw_folder
from subprocesses import ROOT

pytestmark = pytest.mark.deep


def test_script_trains_and_resumes(tmp_path: Path) -> None:
    commands = tmp_path / 'bin'
    commands.mkdir()
    (commands / 'scontrol').write_text('#!/bin/sh\ntest "$*" = "show hostnames node[1-1]" && echo localhost\n')
    (commands / 'srun').write_text('#!/bin/sh\nexec "$@"\n')
    for command in commands.iterdir():
        command.chmod(0o755)
    variables = dict(
        SLURM_JOB_NODELIST='node[1-1]', SLURM_NNODES='1', SLURM_JOB_ID=str(os.getpid()), OMP_NUM_THREADS='1'
    )
    variables |= dict(
        PYTHONPATH=str(ROOT),
        PATH=os.pathsep.join((str(commands), str(Path(sys.executable).parent), os.environ['PATH'])),
    )
    flags = ['--model', 'sknet_atto', '--epochs', '1', '--batch-size', '8', '--workers', '0', '--device', 'cpu']
    data, run = draw_folder(tmp_path / 'data'), tmp_path / 'run'
    for _ in range(2):
        subprocess.run(
            [ROOT / 'examples' / 'slurm.sh', data, run, *flags],
            env={**os.environ, **variables},
            cwd=tmp_path,
            check=True,
            timeout=600,
        )
    rows = (run / 'metrics.csv').read_text().splitlines()
    assert len(rows) == 1 + 1  # the second call found the finished run
    assert (run / 'export' / 'model.safetensors').is_file()
