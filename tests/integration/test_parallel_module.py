"""Two processes train ours as they train timm's class: DDP with a static graph, and FSDP2."""

import pytest
import torch
from ranks import run_ranks
from timm_pair import assert_differs, assert_same, each_family, each_mode, images, pair
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

pytestmark = pytest.mark.integration


def parallelize(model: nn.Module, kind: str) -> nn.Module:
    if kind == 'ddp':
        return DistributedDataParallel(model, static_graph=True, gradient_as_bucket_view=True)
    mesh = init_device_mesh('cpu', (2,))
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def steps(model: nn.Module, rank: int, kind: str) -> dict[str, Tensor]:
    """Outputs of three steps on a rank's own images, and the unsharded state dict."""
    parallel = parallelize(model, kind)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.01, momentum=0.9)
    found = {}
    for step in range(3):  # DDP learns the graph in the first
        output = parallel(images(seed=10 * step + rank))
        output.sin().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        found[f'output {step}'] = output.detach()
    state = {key.removeprefix('module.'): tensor for key, tensor in parallel.state_dict().items()}
    return found | {k: t.full_tensor() if isinstance(t, DTensor) else t.clone() for k, t in state.items()}


def run_rank(rank: int, device: torch.device, name: str, kind: str, training: bool) -> list[dict[str, Tensor]]:
    """The steps of our net, and of timm's."""
    return [steps(model, rank, kind) for model in pair(name, training=training)]


@each_family
@each_mode
@pytest.mark.parametrize('kind', ['ddp', 'fsdp2'])
def test_three_steps_in_two_processes(name, training, kind, tmp_path, monkeypatch):
    monkeypatch.setenv('GLOO_SOCKET_IFNAME', 'lo')
    ranks = run_ranks(run_rank, tmp_path, name, kind, training, devices=['cpu'] * 2)
    for ours, theirs in ranks:
        assert_same(ours, theirs, tolerance=1e-8)
    assert_same(ranks[0][0]['fc.weight'], ranks[1][0]['fc.weight'])
    assert_differs(ranks[0][0]['output 0'], ranks[1][0]['output 0'])
