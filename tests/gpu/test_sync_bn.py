"""SyncBatchNorm in two processes on CUDA computes what one process does."""

from pathlib import Path

import pytest
import torch
from ddp_equivalence import CONFIG, require_ddp_equivalence

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no CUDA GPU'),
]


@pytest.mark.parametrize(
    ('backend', 'devices'),
    [
        pytest.param(
            'nccl',
            ['cuda:0', 'cuda:1'],
            marks=pytest.mark.skipif(torch.cuda.device_count() < 2, reason='there are no two CUDA GPUs'),
        ),
        ('gloo', ['cuda:0', 'cuda:0']),  # nccl refuses two processes on one GPU
    ],
)
def test_ddp_equivalence_with_sync_bn(backend: str, devices: list[str], tmp_path: Path) -> None:
    trained = CONFIG.changed(freeze_bn=False)
    synced = trained.changed(sync_bn=True)
    require_ddp_equivalence(tmp_path, backend=backend, devices=devices, config=synced, whole=trained)
