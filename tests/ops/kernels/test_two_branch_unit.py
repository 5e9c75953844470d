"""The SK unit on the two-branch kernel: its values, its limits, and when deploying chooses it."""

import copy
import pickle
from typing import Any

import pytest
import torch
from kernel_cases import launched
from random_weights import fill_model, make_input
from timm.utils import reparameterize_model
from torch import Tensor, nn
from variants import filled, images

import timm_sk
from timm_sk.atomic_io import read_json
from timm_sk.inference import tune_branches
from timm_sk.inference.autotune import FILE_NAME
from timm_sk.inference.tune_branches import SEPARATE, replace_where_faster
from timm_sk.layers import SelectiveKernel
from timm_sk.layers.folded_conv import FoldedConv
from timm_sk.layers.fused_selective_kernel import FORMS, TwoBranchSelectiveKernel, can_replace, convolutions
from timm_sk.models.lucid_units import BareSelectiveKernel
from timm_sk.models.sknet import StackedSelectiveKernel
from timm_sk.models.sknet_upstreams import SigmoidSelectiveKernel
from timm_sk.ops import kernels
from timm_sk.pretrained import store_root

two_branch = pytest.importorskip('timm_sk.ops.kernels.two_branch')
launcher = pytest.importorskip('timm_sk.ops.kernels.launcher')

SEPARATE_WINS = {SEPARATE: [1.0], 'store_branches': [0.96], 'recompute_branches': [2.0]}  # 4 % are within the margin
STORE_WINS = {SEPARATE: [1.0], 'store_branches': [0.5], 'recompute_branches': [0.6]}
RECOMPUTE_WINS = {SEPARATE: [1.0], 'store_branches': [0.9], 'recompute_branches': [0.8]}


LAUNCHES = {'store_branches': dict(two_branch=1, select=1), 'recompute_branches': dict(two_branch=2)}


def folded(layer: type[SelectiveKernel] = SelectiveKernel, channels: int = 16, **kwargs: Any) -> nn.Module:
    """A folded unit with random weights, by default without `split_input`."""
    unit = layer(channels, **{'split_input': False, **kwargs})
    return reparameterize_model(fill_model(unit).eval()).requires_grad_(False)


def image() -> Tensor:
    return make_input((1, 16, 5, 4))


def assert_close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6 * float(wanted.abs().max()))


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize(
    ('layer', 'kwargs'),
    [(SelectiveKernel, dict(stride=2, groups=4)), (SigmoidSelectiveKernel, dict(out_channels=32, dilation=2))],
)
def test_same_values_and_state_dict(layer, kwargs, form):
    unit = folded(layer, **kwargs)
    before = {key: tensor.clone() for key, tensor in unit.state_dict().items()}
    wanted = unit(image())
    joined = TwoBranchSelectiveKernel(unit, form)
    for twin in (joined, copy.deepcopy(joined), pickle.loads(pickle.dumps(joined))):
        with launched(**LAUNCHES[form]):
            assert_close(twin(image()), wanted)
        assert twin.state_dict().keys() == before.keys()
        assert all(torch.equal(tensor, before[key]) for key, tensor in twin.state_dict().items())


@pytest.mark.parametrize('form', FORMS)
def test_compiles_in_one_graph(form):
    joined = TwoBranchSelectiveKernel(folded(), form)
    wanted = joined(image())
    with launched(**LAUNCHES[form]):
        assert_close(torch.compile(joined, backend='aot_eager', fullgraph=True)(image()), wanted)


@pytest.mark.filterwarnings('ignore:.torch.jit:FutureWarning')
def test_modules_run_where_the_kernel_cannot(monkeypatch):
    unit = folded()
    joined, x = TwoBranchSelectiveKernel(copy.deepcopy(unit), 'store_branches'), image()
    wanted, launches = unit(x), launcher.launches['two_branch']
    assert_close(torch.jit.trace(joined, x, check_trace=False)(x), wanted)
    assert_close(torch.export.export(joined, (x,)).module()(x), wanted)
    assert_close(torch.func.vmap(joined)(x[None])[0], wanted)
    gradient = torch.autograd.grad(joined(x.requires_grad_()).sum(), x)[0]
    assert_close(gradient, torch.autograd.grad(unit(x).sum(), x)[0])
    x = x.detach()
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(joined(x), unit(x))
    outputs: list[Tensor] = []
    hook = joined.paths[1].register_forward_hook(lambda _, __, output: outputs.append(output.clone()))
    assert_close(joined(x), wanted)
    assert_close(outputs[0], unit.paths[1](x))
    hook.remove()
    assert_close(copy.deepcopy(joined).double()(x.double()).float(), wanted)
    with monkeypatch.context() as patched:
        patched.setattr(kernels, 'INTERPRETED', False)
        assert_close(joined(x), wanted)
    assert launcher.launches['two_branch'] == launches
    with launched(**LAUNCHES['store_branches']):
        assert_close(joined(x), wanted)


def test_loaded_weights_are_packed():
    other = fill_model(SelectiveKernel(16, split_input=False), seed=1).eval()
    other = reparameterize_model(other).requires_grad_(False)
    joined = TwoBranchSelectiveKernel(folded(), 'recompute_branches')
    joined.load_state_dict(other.state_dict())
    with launched(two_branch=2):
        found = joined(image())
    assert_close(found, other(image()))


@pytest.mark.parametrize(
    ('unit', 'taken'),
    [
        (lambda: folded(), True),
        (lambda: folded(groups=2, channels=32, stride=2, kernel_size=[3, 7]), True),
        (lambda: folded(kernel_size=[5, 5], dilation=3), True),
        (lambda: folded(SigmoidSelectiveKernel), True),
        (lambda: folded().bfloat16(), True),
        (lambda: folded().double(), False),
        (lambda: folded(split_input=True, channels=32), False),
        (lambda: folded(kernel_size=[3, 5, 7]), False),
        (lambda: folded(keep_3x3=False), False),
        (lambda: folded(groups=[1, 2]), False),
        (lambda: folded(attention=False), False),
        (lambda: folded(act_layer=nn.SiLU), False),
        (lambda: folded(act_layer=nn.ReLU6), False),
        (lambda: folded(aa_layer=nn.AvgPool2d, stride=2), False),
        (lambda: folded(norm_layer='groupnorm1'), False),
        (lambda: folded(StackedSelectiveKernel), False),
        (lambda: BareSelectiveKernel(16, 16, [3, 3]).eval(), False),
        (lambda: folded(stride=3), False),
        (lambda: folded(channels=8), False),
        (lambda: folded(channels=136), False),
        (lambda: folded(channels=136, groups=2), True),
        (lambda: SelectiveKernel(16, split_input=False).eval(), False),
        (lambda: TwoBranchSelectiveKernel(folded(), 'store_branches'), False),
        (lambda: nn.Conv2d(16, 16, 3), False),
    ],
)
def test_which_units_are_replaced(unit, taken):
    module = unit()
    assert can_replace(module) is taken
    if not taken:
        with pytest.raises(ValueError, match='a unit of two folded 3x3 branches'):
            TwoBranchSelectiveKernel(module, 'store_branches')


def test_unknown_form():
    with pytest.raises(ValueError, match="one of store_branches, recompute_branches, got 'A'"):
        TwoBranchSelectiveKernel(folded(), 'A')


def like(*size: int) -> Tensor:
    """An input on the meta device."""
    return torch.empty(1, *size, device='meta').to(memory_format=torch.channels_last)


class Net(nn.Module):
    """Three units, two of them equal."""

    def __init__(self) -> None:
        super().__init__()
        self.units = nn.Sequential(folded(), folded(), folded(stride=2))

    def inputs(self) -> dict[FoldedConv, Tensor]:
        return {convolutions(unit)[0]: like(16, 5, 4) for unit in self.units}

    def forms(self) -> list[str]:
        return [getattr(unit, 'form', SEPARATE) for unit in self.units]


def test_equal_units_are_measured_once(monkeypatch):
    path = store_root() / FILE_NAME
    answers = iter(['store_branches', SEPARATE, 'recompute_branches', 'store_branches'])  # each is measured once
    monkeypatch.setattr(tune_branches, 'fastest_form', lambda *_, **__: next(answers))
    net = Net()
    found = replace_where_faster(net, net.inputs(), remember=False, interpret=True)
    assert found == {'units.0': 'store_branches', 'units.1': 'store_branches'}
    assert net.forms() == ['store_branches', 'store_branches', SEPARATE]
    assert not path.exists()
    for _ in range(2):
        net = Net()
        replace_where_faster(net, net.inputs(), interpret=True)
        assert net.forms() == ['recompute_branches', 'recompute_branches', 'store_branches']
    again = read_json(path, version=1)
    assert sorted(again.values()) == ['recompute_branches', 'store_branches']
    assert all('torch 2' in key and 'triton' in key and 'groups 1' in key for key in again)


@pytest.mark.parametrize(
    ('times', 'form'),
    [(SEPARATE_WINS, SEPARATE), (STORE_WINS, 'store_branches'), (RECOMPUTE_WINS, 'recompute_branches')],
)
def test_fastest_form_must_win_by_a_margin(monkeypatch, times, form):
    def measure(runs: dict[str, Any], device: torch.device) -> dict[str, list[float]]:
        outputs = {form: run() for form, run in runs.items()}
        assert list(outputs) == [SEPARATE, *FORMS]
        for form in FORMS:
            assert_close(outputs[form], outputs[SEPARATE])
        return times

    unit = folded(channels=32, groups=4)
    for conv in convolutions(unit):
        conv.merge(2)
    monkeypatch.setattr(torch, 'compile', lambda module, **_: pytest.fail('compiled'))
    monkeypatch.setattr(tune_branches, 'measure', measure)
    launches = launcher.launches['two_branch']
    assert tune_branches.fastest_form(unit, like(32, 3, 3)) == form
    assert launcher.launches['two_branch'] == launches + 3 + 3  # once to prepare, once in the measurement
    assert type(unit) is SelectiveKernel
    assert [conv.wide_groups for conv in convolutions(unit)] == [2, 2]
    assert [conv.wide_groups for conv in convolutions(TwoBranchSelectiveKernel(unit, 'store_branches'))] == [4, 4]


@pytest.mark.parametrize('form', FORMS)
def test_kernel_that_cannot_be_built(monkeypatch, form, caplog):
    compute = two_branch.compute

    def fail(*arguments: Any) -> list[Tensor]:
        if arguments[-1] == (form == 'store_branches'):
            raise RuntimeError('no C compiler')
        return compute(*arguments)

    seen: list[list[str]] = []
    monkeypatch.setattr(tune_branches, 'measure', lambda runs, device: seen.append(list(runs)) or {SEPARATE: [1.0]})
    monkeypatch.setattr(torch.ops.timm_sk, 'two_branch', fail)
    tune_branches._log_once.cache_clear()
    for _ in range(2):
        assert tune_branches.fastest_form(folded(), like(16, 3, 3)) == SEPARATE
    assert seen == [[SEPARATE, *(other for other in FORMS if other != form)]] * 2
    assert [record.getMessage() for record in caplog.records] == [
        'The two-branch kernel is not used: RuntimeError: no C compiler'
    ]


def test_not_on_a_cpu(monkeypatch):
    monkeypatch.setattr(tune_branches, 'measure', lambda runs, device: STORE_WINS)
    net = Net()
    assert replace_where_faster(net, net.inputs()) == {}
    monkeypatch.setattr(kernels, 'INTERPRETED', False)
    assert replace_where_faster(net, net.inputs(), interpret=True) == {}
    monkeypatch.setattr(kernels, 'INTERPRETED', True)
    monkeypatch.setattr(kernels, 'load', lambda name: False)  # Triton is missing
    assert replace_where_faster(net, net.inputs(), interpret=True) == {}
    assert net.forms() == [SEPARATE] * 3


@torch.no_grad()
def test_whole_net(monkeypatch):
    model = filled('sknet_atto')
    deployed = timm_sk.deploy(model, input_size=(3, 32, 32), compile=False, merge_groups=False)
    assert not [module for module in deployed.modules() if isinstance(module, TwoBranchSelectiveKernel)]
    units = [unit for unit in deployed.modules() if can_replace(unit)]
    assert len(units) == 5
    keys = {key: tensor.clone() for key, tensor in deployed.state_dict().items()}
    x = images(1, size=32)
    wanted, weights = deployed(x), timm_sk.attention_weights(model, x)
    forms = ['store_branches', 'recompute_branches', 'store_branches', SEPARATE, 'recompute_branches']
    answers = iter(forms)
    monkeypatch.setattr(tune_branches, 'fastest_form', lambda *_, **__: next(answers))
    inputs = {convolutions(unit)[0]: like(unit.in_channels, 1, 1) for unit in units}
    replaced = replace_where_faster(deployed, inputs, remember=False, interpret=True)
    assert list(replaced.values()) == [form for form in forms if form != SEPARATE]
    launches = launcher.launches['two_branch']
    assert float((deployed(x) - wanted).abs().max() / wanted.abs().max()) <= 1e-5
    assert launcher.launches['two_branch'] == launches + 6
    assert deployed.state_dict().keys() == keys.keys()
    assert all(torch.equal(tensor, keys[key]) for key, tensor in deployed.state_dict().items())
    for ours, theirs in zip(timm_sk.attention_weights(deployed.model, x), weights, strict=True):
        assert ours.path == theirs.path
        assert_close(ours.weights, theirs.weights)


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('compile', [False, True])
@torch.no_grad()
def test_deployed_on_a_gpu(dtype, compile):
    model = filled('sknet50').cuda()
    x = images(8, size=64).cuda()
    deployed = timm_sk.deploy(model, input_size=(3, 64, 64), batch_size=8, dtype=dtype, compile=compile)
    fastest = read_json(store_root() / FILE_NAME, version=1)
    assert {form for form in fastest.values() if isinstance(form, str)} & {SEPARATE, *FORMS}
    wanted = model(x)
    tolerance = 1e-2 if dtype == torch.float32 else 5e-2  # cuDNN's convolutions may use TF32
    assert float((deployed(x) - wanted).abs().max() / wanted.abs().max()) <= tolerance
