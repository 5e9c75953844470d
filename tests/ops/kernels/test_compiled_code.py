"""What the interpreter cannot tell: that the kernels compile for CUDA devices, and that the code is what was meant."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize('capability', [80, 90])
def test_every_kernel_compiles(capability):
    environment = {key: value for key, value in os.environ.items() if key != 'TRITON_INTERPRET'}
    program = Path(__file__).with_name('compile_for_cuda.py')
    done = subprocess.run(
        [sys.executable, program, str(capability)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [facts['name'] for facts in found] == 4 * [
        *('fuse', 'select', 'select_backward', 'gate_backward', 'fuse_normed', 'select_normed')
    ]
    for facts in found:
        assert facts['spilled'] == 0
        assert facts['atomics'] == 0
        if facts['name'] != 'gate_backward':  # branches in 16 bytes at a time
            assert 'ld.global.v4.b32' in facts['accesses']
        if facts['name'].startswith('select'):
            assert 'st.global.v4.b32' in facts['accesses']
