"""What the interpreter cannot tell: that the kernels compile for CUDA devices, and that the code is what was meant."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.deep

KERNELS = ('fuse', 'select', 'select_backward', 'gate_backward', 'fuse_bias_act', 'select_bias_act')


def test_every_kernel_compiles():
    environment = {key: value for key, value in os.environ.items() if key != 'TRITON_INTERPRET'}
    program = Path(__file__).with_name('compile_for_cuda.py')
    done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    expected = [(name, device) for device in ('sm_80', 'sm_90a') for name in KERNELS]
    assert [(facts['name'], facts['device']) for facts in found] == expected
    for facts in found:
        assert facts['spilled'] <= 32  # bytes of registers, of a thread
        assert facts['atomics'] == 0
        if facts['name'] != 'gate_backward':  # branches in 16 bytes at a time
            assert 'ld.global.v4.b32' in facts['accesses']
        if facts['name'].startswith('select'):
            assert 'st.global.v4.b32' in facts['accesses']
