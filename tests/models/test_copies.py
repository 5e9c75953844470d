"""Copies, files and torch's own tools for modules, by value with timm's class where it has the form."""

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import timm.utils
import torch
from timm_pair import (
    FORMS,
    assert_differs,
    assert_same,
    each_family,
    each_form,
    each_mode,
    images,
    in_form,
    pair,
    run_step,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim import swa_utils
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.feature_extraction import create_feature_extractor

pytestmark = pytest.mark.deep


def copy_by_torch(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    'deepcopy': copy.deepcopy,
    'torch': copy_by_torch,
    **{f'pickle{p}': lambda model, p=p: pickle.loads(pickle.dumps(model, protocol=p)) for p in (2, 5)},
}


@each_family
@each_form
@pytest.mark.parametrize('way', COPIES)
@torch.no_grad()
def test_copies_of_each_form(name, form, way):
    """Before the first pass and after it, and of a copy."""
    ours, theirs = pair(name)
    expected = theirs(images())
    model = in_form(ours, form)
    for _ in range(2):
        model = COPIES[way](model)
        assert_same(model(images()), expected)


@each_family
@each_mode
@pytest.mark.parametrize('way', COPIES)
def test_copies_are_independent(name, training, way):
    """A copy made between a pass and its backward pass shares nothing with its original."""

    def transform(model: nn.Module) -> list[dict[str, Tensor]]:
        output = model(images())
        other = COPIES[way](model)
        output.sum().backward()
        assert all(parameter.grad is None for parameter in other.parameters())
        return [run_step(other), run_step(model)]

    assert_same(*map(transform, pair(name, training=training)))


@each_family
@each_mode
@pytest.mark.filterwarnings('ignore:NOTE. The nodes obtained by tracing:UserWarning')
def test_feature_extractor(name, training):
    unit = 'conv1' if name == 'skresnet18' else 'conv2'
    nodes = {'layer1.0': 'block', f'layer2.0.{unit}': 'unit', 'layer4': 'last', 'fc': 'logits'}

    def transform(model: nn.Module) -> list[Any]:
        extractor = create_feature_extractor(model, nodes)
        features = extractor(images())
        sum(feature.sin().sum() for feature in features.values()).backward()
        gradients = {key: p.grad for key, p in extractor.named_parameters() if p.grad is not None}
        return [features, {key: gradients[key] for key in sorted(gradients)}]

    assert_same(*map(transform, pair(name, training=training)))


class Doubled(nn.Module):
    def forward(self, tensor: Tensor) -> Tensor:
        return 2 * tensor


def normalized(normalize: Callable[[nn.Module], object]) -> Callable[[nn.Module], None]:
    """Normalize a module's weight, and scale its length where it is a parameter: or weight norm changes nothing."""

    def apply(module: nn.Module) -> None:
        torch.manual_seed(0)
        normalize(module)
        for key, parameter in module.named_parameters():
            if key in ('weight_g', 'parametrizations.weight.original0'):
                parameter.data.mul_(1.5)

    return apply


def doubled(tensor: str) -> Callable[[nn.Module], object]:
    return lambda module: parametrize.register_parametrization(module, tensor, Doubled())


def pruned(module: nn.Module) -> None:
    """Make a weight before each forward pass from the one that learns."""
    prune.l1_unstructured(module, 'weight', amount=0.3)


PARAMETRIZATIONS: dict[str, tuple[Any, Callable[[nn.Module], object], list[bool]]] = {
    'weight_norm': (nn.Conv2d, normalized(parametrizations.weight_norm), [False, True]),
    'spectral_norm': (nn.Conv2d, normalized(parametrizations.spectral_norm), [False, True]),
    'old weight_norm': (nn.Conv2d, normalized(nn.utils.weight_norm), [False, True]),  # by a hook before forward
    'old spectral_norm': (nn.Conv2d, normalized(nn.utils.spectral_norm), [False, True]),
    'weight of norms': (nn.BatchNorm2d, doubled('weight'), [False, True]),
    'bias of norms': (nn.BatchNorm2d, doubled('bias'), [False]),
    'variance of norms': (nn.BatchNorm2d, doubled('running_var'), [False]),
    'pruned': ((nn.Conv2d, nn.BatchNorm2d, nn.Linear), pruned, [False, True]),
}


@each_family
@pytest.mark.parametrize(
    ('kind', 'training'), [(kind, mode) for kind, (_, _, modes) in PARAMETRIZATIONS.items() for mode in modes]
)
@pytest.mark.filterwarnings('ignore:.*weight_norm. is deprecated:FutureWarning')
def test_parametrizations(name, kind, training):
    """Two steps, since spectral norms move; then the reparameterized and deployed forms, the last without masks."""
    cls, parametrization, _ = PARAMETRIZATIONS[kind]

    def transform(model: nn.Module) -> list[Any]:
        for module in model.modules():
            if isinstance(module, cls):
                parametrization(module)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        first = {key: tensor.clone() for key, tensor in run_step(model).items()}
        optimizer.step()
        return [first, run_step(model)]

    ours, theirs = pair(name, training=training)
    plain = copy.deepcopy(theirs)(images())
    expected = transform(theirs)
    assert_same(transform(ours), expected)
    assert_differs(expected[0]['output'], plain)
    assert_forms_are_same(ours.eval(), theirs.eval())
    for module in (*ours.modules(), *theirs.modules()) if kind == 'pruned' else ():
        if isinstance(module, cls):
            prune.remove(module, 'weight')
    assert_forms_are_same(ours, theirs)


@torch.no_grad()
def assert_forms_are_same(ours: nn.Module, theirs: nn.Module) -> None:
    expected = theirs(images())
    for form in FORMS:
        assert_same({form: in_form(ours, form)(images())}, {form: expected})


@each_family
@pytest.mark.parametrize('use_buffers', [False, True])
def test_averaged_weights(name, use_buffers):
    """SWA and timm's EMA of three steps, then the norms' statistics of the average."""

    def transform(model: nn.Module) -> list[Any]:
        average = swa_utils.AveragedModel(model, use_buffers=use_buffers)
        ema = timm.utils.ModelEmaV3(model, decay=0.7)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for seed in range(3):
            run_step(model, images(seed=seed))
            optimizer.step()
            average.update_parameters(model)
            ema.update(model)
        with torch.no_grad():
            before = [average.eval()(images()), ema.eval()(images())]
            batches = [images(seed=seed) for seed in range(3)]
            swa_utils.update_bn(batches, average.train())
            states = [average.module.state_dict(), ema.module.state_dict()]
            return [before, average.eval()(images()), [sorted(state.items()) for state in states]]

    assert_same(*map(transform, pair(name, training=True)), tolerance=1e-8)


@each_family
@each_mode
@pytest.mark.parametrize('use_reentrant', [False, True])
def test_checkpoint_of_the_whole_net(name, training, use_reentrant):
    def transform(model: nn.Module) -> dict[str, Tensor]:
        net = nn.Sequential(model)
        net.forward = partial(checkpoint, model, use_reentrant=use_reentrant)
        return run_step(net)

    assert_same(*map(transform, pair(name, training=training)))


@each_family
@each_mode
def test_flop_counter(name, training):
    """torch's own counter, which sees convolutions and matrix products of both passes."""

    def count(model: nn.Module) -> int:
        with FlopCounterMode(display=False) as counter:
            model(images()).sum().backward()
        return counter.get_total_flops()

    ours, theirs = pair(name, training=training)
    assert count(ours) == count(theirs) > 1e6
