"""What the interpreter cannot tell: that the kernels compile for CUDA devices, and that the code is what was meant."""

import json
from pathlib import Path

import pytest
from subprocesses import run_python

pytestmark = pytest.mark.deep

KERNELS = ('fuse', 'select', 'select_backward', 'gate_backward', 'fuse_bias_act', 'select_bias_act')
UNITS = ('128/32 bfloat16', '48/1 bfloat16', '128/1 bfloat16', '128/32 float32', '128/1 float32')  # channels/groups
TWO_BRANCH = [f'two_branch_{form} {unit}' for unit in UNITS for form in ('store', 'fuse', 'select')]


def test_every_kernel_compiles():
    done = run_python(str(Path(__file__).with_name('compile_for_cuda.py')), TRITON_INTERPRET='0')
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    expected = [(name, device) for device in ('sm_80', 'sm_90a') for name in (*KERNELS, *TWO_BRANCH)]
    assert [(facts['name'], facts['device']) for facts in found] == expected
    for facts in found:
        # Bytes of registers, of a thread. Blocks of 128 channels are too wide for products in float32, and spill 0.8 to
        # 1.4 kB.
        assert facts['spilled'] <= 32 or facts['name'].endswith('128/1 float32')
        assert facts['atomics'] == 0
        if facts['name'].startswith('two_branch'):
            assert facts['shared'] <= 96 * 1024
            product = {'sm_80': 'mma.sync', 'sm_90a': 'wgmma.mma_async'}[facts['device']]
            assert (product if 'bfloat16' in facts['name'] else 'fma.rn.f32') in facts['products']
            continue
        if facts['name'] != 'gate_backward':  # branches in 16 bytes at a time
            assert 'ld.global.v4.b32' in facts['accesses']
        if facts['name'].startswith('select'):
            assert 'st.global.v4.b32' in facts['accesses']
