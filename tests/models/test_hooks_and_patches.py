"""Hooks see what they see in timm's class, and whatever replaces a module's forward runs, by value with timm's class.

timm joins norm and activation in one module. A factor after it is a factor after either of ours, since ReLU keeps
positive factors.
"""

import copy
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import pytest
import timm.layers
import timm.models
import torch
import torch.nn.functional as F
from timm_pair import assert_same, each_family, each_mode, each_net, images, pair, run_step
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks

import timm_sk

Call = tuple[str, Any]
OURS_OF_TIMMS = {'.bn.drop': '.drop', '.bn.act': '.act', 'act3': 'act'}
# Also the attention: timm's takes the branches stacked and returns weights, ours takes their mean and returns logits.
WITHOUT_COUNTERPART = {'aa', 'attn', 'drop_block', 'avd_first', 'avd_last', 'rsoftmax', 'se', 'bn2', 'act2'}
FACTOR = 1.5

HOOKS: dict[str, dict[str, dict[str, bool]]] = {
    'forward': {'forward_pre_hook': {}, 'forward_hook': {}},
    'forward with kwargs': {
        'forward_pre_hook': dict(with_kwargs=True, prepend=True),
        'forward_hook': dict(with_kwargs=True, always_call=True),
    },
    'backward': {'full_backward_pre_hook': {}, 'full_backward_hook': {}},
}
# Name of a call, and the arguments that are compared: no input after the pass, which may be overwritten by then.
EVENTS = {
    'forward_pre_hook': ('into', slice(None)),
    'forward_hook': ('out of', slice(1, None)),
    'full_backward_pre_hook': ('gradient into', slice(None)),
    'full_backward_hook': ('gradient out of', slice(1)),
}
each_scope = pytest.mark.parametrize('globally', [False, True], ids=['own', 'global'])
each_context = pytest.mark.parametrize('context', ['no_grad', 'eval', 'train'])


def parts(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that ours and timm's have in common, by our names."""
    found = {}
    for name, module in model.named_modules():
        for theirs, ours in OURS_OF_TIMMS.items():
            name = name[: -len(theirs)] + ours if name.endswith(theirs) else name
        if name and name.rpartition('.')[2] not in WITHOUT_COUNTERPART and type(module) is not nn.ModuleList:
            found[name] = module
    return found


def copied(values: Any) -> Any:
    """Copies of what a module was called with, before the next one writes into it."""
    return torch.utils._pytree.tree_map(lambda v: v.detach().clone() if isinstance(v, Tensor) else v, values)


@contextmanager
def recorded(
    model: nn.Module, kind: str, modules: Iterable[nn.Module] = (), *, globally: bool = False
) -> Iterator[list[Call]]:
    """Record what hooks on modules of a model see, but for what leaves a norm: in timm's class it is activated."""
    calls: list[Call] = []
    names = {module: name for name, module in parts(model).items()}

    def hook_of(event: str) -> Callable[..., None]:
        label, kept = EVENTS[event]

        def hook(module: nn.Module, *values: Any) -> None:
            name = names.get(module)
            if name is not None and (label == 'into' or not name.endswith('.bn')):
                calls.append((f'{label} {name}', copied(values[kept])))

        return hook

    with ExitStack() as handles:
        for event, options in HOOKS[kind].items():
            if not globally:
                for module in modules:
                    handle = getattr(module, f'register_{event}')(hook_of(event), **options)
                    handles.callback(handle.remove)
            elif 'prepend' not in options:  # not for global hooks
                handle = getattr(module_hooks, f'register_module_{event}')(hook_of(event), **options)
                handles.callback(handle.remove)
        yield calls


def by_name(calls: list[Call]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for name, values in calls:
        found.setdefault(name, []).append(values)
    return dict(sorted(found.items()))


def out_of_place(model: nn.Module) -> nn.Module:
    """Let no activation write into its input, which torch forbids behind full backward hooks."""
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return model


def with_input(model: nn.Module, name: str) -> tuple[nn.Module, Tensor]:
    """A module of a model, and what goes into it."""
    seen: list[Tensor] = []
    module = model.get_submodule(name)
    with module.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone())):
        copy.deepcopy(model).eval()(images())
    return module, seen[0]


def blocks(name: str, context: str) -> list[tuple[nn.Module, Tensor]]:
    """A residual block of ours and of timm's, and its input."""
    return [(block.train(context == 'train'), x) for block, x in copy.deepcopy(_blocks(name, 'layer2.0'))]


def units(name: str, context: str) -> list[tuple[nn.Module, Tensor]]:
    """An SK unit or a split attention of ours and of timm's, and its input."""
    found = copy.deepcopy(_blocks(name, 'layer2.0.conv1' if name == 'skresnet18' else 'layer2.0.conv2'))
    return [(out_of_place(unit).train(context == 'train'), x) for unit, x in found]


@cache
def _blocks(name: str, path: str) -> list[tuple[nn.Module, Tensor]]:
    return [with_input(model, path) for model in pair(name)]


def run(module: nn.Module, x: Tensor, context: str) -> dict[str, Tensor]:
    """What a module computes: without gradients the output alone, else also gradients and running statistics."""
    if context == 'no_grad':
        with torch.no_grad():
            return {'output': module(x)}
    found = run_step(module, x)
    return {key.replace('act3', 'act'): tensor for key, tensor in found.items()}


def assert_hooks_see_the_same(make: Callable[..., Any], name: str, context: str, kind: str, globally: bool) -> None:
    """Hooks on every module at once, and on one alone, whose neighbours might take a shortcut around it."""
    (ours, x), (theirs, _) = make(name, context)
    unused = copy.deepcopy(ours)  # its running statistics have not moved
    calls = []
    for model in (ours, theirs):
        with recorded(model, kind, parts(model).values(), globally=globally) as seen:
            run(model, x, context)
        calls.append(seen)
    assert len(calls[1]) > 10
    if kind != 'backward':
        assert [call for call, _ in calls[0]] == [call for call, _ in calls[1]]
    found, expected = map(by_name, calls)
    assert_same(found, expected)
    for part in () if globally else parts(ours):
        model = copy.deepcopy(unused)
        with recorded(model, kind, [parts(model)[part]]) as seen:
            run(model, x, context)
        assert_same(by_name(seen), {call: values for call, values in expected.items() if call.endswith(f' {part}')})


@each_family
@each_context
@pytest.mark.parametrize('kind', ['forward', 'forward with kwargs'])
@each_scope
def test_forward_hooks(name, context, kind, globally):
    assert_hooks_see_the_same(blocks, name, context, kind, globally)


@each_family
@pytest.mark.parametrize('context', ['eval', 'train'])
@each_scope
def test_full_backward_hooks(name, context, globally):
    assert_hooks_see_the_same(units, name, context, 'backward', globally)


@each_family
@pytest.mark.parametrize('context', ['eval', 'train'])
def test_full_backward_hooks_change_gradients(name, context):
    (ours, x), (theirs, _) = units(name, context)
    originals = copy.deepcopy([ours, theirs])
    for part in parts(ours):
        if part.endswith('.bn'):  # where timm's class has the activation as well
            continue
        found = []
        for unit in copy.deepcopy(originals):
            parts(unit)[part].register_full_backward_pre_hook(lambda module, grad: (FACTOR * grad[0],))
            parts(unit)[part].register_full_backward_hook(lambda module, grad_in, grad_out: (FACTOR * grad_in[0],))
            found.append(run(unit, x, context))
        assert_same(*found)


@each_family
@each_context
def test_always_call_hooks_after_an_error(name, context):
    (ours, x), (theirs, _) = blocks(name, context)
    called = []
    for block in (ours, theirs):
        seen: list[str] = []
        names = parts(block)
        for part, module in names.items():
            if not part.endswith('.bn'):
                module.register_forward_hook(
                    lambda module, args, output, part=part, seen=seen: seen.append(f'{part}: {output is None}'),
                    always_call=True,
                )

        def fail(module: nn.Module, args: Any) -> None:
            raise ArithmeticError('injected')

        unit = 'conv1' if name == 'skresnet18' else 'conv2'
        names[f'{unit}.act0' if name == 'resnest14d' else f'{unit}.paths.1.act'].register_forward_pre_hook(fail)
        with pytest.raises(ArithmeticError, match='injected'):
            run(block, x, context)
        called.append(seen)
    assert called[0] == called[1]
    assert f'{unit}: True' in called[0]


def scale_by_forward(block: nn.Module, module: nn.Module) -> None:
    """As accelerate and quantisers do: a function on the instance."""
    module.forward = types.MethodType(lambda self, *args: FACTOR * type(self).forward(self, *args), module)


def scale_by_class(block: nn.Module, module: nn.Module) -> None:
    """As parametrizations do: a class made for the instance."""
    original = type(module)
    module.__class__ = type(
        original.__name__, (original,), {'forward': lambda self, *args: FACTOR * original.forward(self, *args)}
    )


class Scaled(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.train(module.training)

    def forward(self, *args: Tensor) -> Tensor:
        return FACTOR * self.module(*args)


def scale_by_wrapper(block: nn.Module, module: nn.Module) -> None:
    block.set_submodule(next(key for key, part in block.named_modules() if part is module), Scaled(module))


def scale_by_hook(block: nn.Module, module: nn.Module) -> None:
    module.register_forward_hook(lambda module, args, output: FACTOR * output)


def scale_by_pre_hook(block: nn.Module, module: nn.Module) -> None:
    module.register_forward_pre_hook(lambda module, args: (FACTOR * args[0],))


@each_family
@each_context
@pytest.mark.parametrize(
    'scale',
    [scale_by_forward, scale_by_class, scale_by_wrapper, scale_by_hook, scale_by_pre_hook],
    ids=lambda scale: scale.__name__.removeprefix('scale_by_'),
)
def test_replaced_parts(name, context, scale):
    originals = blocks(name, context)
    x = originals[0][1]
    plain = run(copy.deepcopy(originals[0][0]), x, context)
    for part in parts(originals[0][0]):
        found = []
        for block, _ in copy.deepcopy(originals):
            scale(block, parts(block)[part])
            found.append({key.replace('.module.', '.'): tensor for key, tensor in run(block, x, context).items()})
        assert_same({part: found[0]}, {part: found[1]})
        assert any(not torch.allclose(found[1][key], tensor, rtol=1e-3) for key, tensor in plain.items()), part


@each_net
@pytest.mark.parametrize('scale', [scale_by_forward, scale_by_class, scale_by_wrapper, scale_by_hook])
@torch.no_grad()
def test_replaced_parts_when_folded(name, scale):
    """In reparameterized and deployed nets too: parts of stem, head and a block."""
    original, _ = pair(name)
    for part in parts(original):
        if part.startswith('layer2.0') or not part.startswith('layer'):
            model = copy.deepcopy(original)
            scale(model, parts(model)[part])
            assert_same_when_folded(model, images(2), part)


def assert_same_when_folded(model: nn.Module, x: Tensor, part: str) -> None:
    expected = {part: model(x)}
    assert_same({part: timm.models.reparameterize_model(model)(x)}, expected)
    size = dict(input_size=list(x.shape[1:]), batch_size=len(x))
    deployed = timm_sk.deploy(model, **size, compile=False, merge_groups=False, join_branches=False)
    assert_same({part: deployed(x)}, expected)


@contextmanager
def patched(monkeypatch: pytest.MonkeyPatch, cls: type) -> Iterator[None]:
    """Another forward of a class of torch: of an activation, a norm or a convolution."""
    original = cls.forward
    with monkeypatch.context() as patch:
        if cls is nn.ReLU:
            patch.setattr(cls, 'forward', lambda self, x: F.gelu(x))
        else:
            patch.setattr(cls, 'forward', lambda self, x: FACTOR * original(self, x))
        if cls is nn.BatchNorm2d:  # which timm's class with an activation does not call
            forward: Callable[[Any, Tensor], Tensor] = lambda self, x: self.act(  # noqa: E731
                self.drop(cls.forward(self, x))
            )
            patch.setattr(timm.layers.BatchNormAct2d, 'forward', forward)
        yield


@each_net
@each_context
@pytest.mark.parametrize('cls', [nn.ReLU, nn.BatchNorm2d, nn.Conv2d])
def test_forward_patched_on_a_class(name, context, cls, monkeypatch):
    (ours, x), (theirs, _) = blocks(name, context)
    plain = run(copy.deepcopy(theirs), x, context)
    with patched(monkeypatch, cls):
        found = run(ours, x, context)
        expected = run(theirs, x, context)
    assert_same(found, expected)
    assert not torch.allclose(expected['output'], plain['output'], rtol=1e-3)


@each_net
@pytest.mark.parametrize('cls', [nn.ReLU, nn.BatchNorm2d, nn.Conv2d])
@torch.no_grad()
def test_forward_patched_on_a_class_when_folded(name, cls, monkeypatch):
    model, _ = pair(name)
    with patched(monkeypatch, cls):
        assert_same_when_folded(model, images(2), cls.__name__)


@each_net
@each_mode
@pytest.mark.parametrize(
    'attributes',
    [
        dict(track_running_stats=False),
        dict(momentum=None),
        dict(momentum=0.5, eps=0.1),
        dict(running_mean=None, running_var=None),
        dict(num_batches_tracked=None),
        dict(weight=None, bias=None),
        dict(bias=None),
    ],
    ids=lambda attributes: '-'.join(attributes),
)
def test_attributes_of_norms(name, training, attributes):
    def transform(model: nn.Module) -> dict[str, Tensor]:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for key, value in attributes.items():
                    setattr(module, key, value)
        return run_step(model)

    assert_same(*map(transform, pair(name, training=training)))
