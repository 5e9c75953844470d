"""Cases, variants and their baselines, and models of timm that compute the same function."""

import pytest
import timm
import torch

from timm_sk.bench import cases
from timm_sk.bench.counterparts import KERNEL_SIZES, PLAIN_BACKBONES, TIMM_FUNCTIONS, branch_counts, build
from timm_sk.bench.matrix import baseline, variants
from timm_sk.bench.random_weights import fill

ONE = dict(dtypes=['float32'], memory_formats=['channels_last'])
FORMS = ['eager', 'reparameterized', 'deployed', 'merged', 'compiled']
SIDES = ['ours', 'timm', 'plain']


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize('arch', [*TIMM_FUNCTIONS, 'skresnet34', 'resnest50d'])
@pytest.mark.parametrize('branches', [None, 1, 4])
def test_timm_model_has_our_parameters(arch, branches):
    with torch.device('meta'):
        ours, timms = (build(side, arch, branches=branches) for side in ('ours', 'timm'))
    assert type(timms).__module__.startswith('timm.')
    assert shapes(ours) == shapes(timms)


def test_timm_model_of_sknet26_is_the_same_function():
    images = torch.randn(2, 3, 64, 64)
    timms = fill(build('timm', 'sknet26'), images).eval().double()
    ours = build('ours', 'sknet26').eval().double()
    ours.load_state_dict(timms.state_dict())
    with torch.no_grad():
        expected = timms(images.double())
        torch.testing.assert_close(ours(images.double()), expected, rtol=0, atol=1e-11 * float(expected.abs().max()))


def test_kernel_sizes_of_branches():
    with torch.device('meta'):
        nets = {count: build('timm', 'skresnet34', branches=count) for count in branch_counts('skresnet34')}
    assert list(nets) == [1, 2, 3, 4]
    for count, net in nets.items():
        paths = net.layer1[0].conv1.paths
        assert [path.conv.dilation[0] for path in paths] == [(size - 1) // 2 for size in KERNEL_SIZES[:count]]
        assert {path.conv.in_channels for path in paths} == {64}


def test_only_ours_can_be_reparameterized():
    names = [*('skresnet18', 'skresnext50_32x4d', 'resnest14d'), *set(PLAIN_BACKBONES.values())]
    for name in names:
        with torch.device('meta'):
            net = getattr(timm.models, name)()
        assert not [module for module in net.modules() if hasattr(module, 'fuse') or hasattr(module, 'reparameterize')]


def baselines(case, forms, sides=SIDES):
    """What each variant of a case is compared with."""
    chosen = variants(case, forms=forms, sides=sides)
    return {str(variant): str(baseline(variant, chosen)) for variant in chosen}


def test_variants_and_baselines():
    inference, training = cases(['skresnet34'], tasks=['inference', 'training'], **ONE)
    assert baselines(inference, FORMS) == {
        'timm eager': 'None',
        'plain eager': 'timm eager',
        'ours eager': 'timm eager',
        'ours reparameterized': 'timm eager',
        'ours deployed': 'timm eager',
        'timm compiled': 'timm eager',
        'plain compiled': 'timm compiled',
        'ours compiled': 'timm compiled',
    }
    trained = list(baselines(training, FORMS[1:], ['ours']))
    assert trained == ['timm eager', 'ours merged', 'timm compiled', 'ours compiled']
    for case, form in ((inference, 'max_autotune'), (inference, 'compiled+graph'), (training, 'max_autotune')):
        assert baselines(case, [form]) == {
            'timm eager': 'None',
            f'timm {form}': 'timm eager',
            f'plain {form}': f'timm {form}',
            f'ours {form}': f'timm {form}',
        }
    assert list(baselines(training, ['folded', 'eager+graph'])) == ['timm eager']
    assert baselines(inference, ['eager+graph', 'folded_joined+graph', 'inductor', 'compiled'], ['ours']) == {
        'timm eager': 'None',
        'timm compiled': 'timm eager',
        'ours compiled': 'timm compiled',
        'ours inductor': 'timm compiled',
        'timm eager+graph': 'timm eager',
        'ours eager+graph': 'timm eager+graph',
        'ours folded_joined+graph': 'timm eager+graph',
    }
    (alone,) = cases(['sknet_atto'], tasks=['inference'], **ONE)
    assert baselines(alone, FORMS[:2], ['timm']) == {'ours eager': 'None', 'ours reparameterized': 'ours eager'}


def test_scaling_axes():
    both = dict(tasks=['inference', 'training'], **ONE)
    batches = [(case.task, case.batch) for case in cases(['skresnet18'], scaling='batch', **both)]
    assert batches == [
        *(('inference', batch) for batch in (1, 2, 4, 8, 16, 32, 64)),
        *(('training', batch) for batch in (2, 4, 8, 16, 32, 64)),
    ]
    sizes = [case.size for case in cases(['skresnet18'], scaling='resolution', batch=4, **both)]
    assert (sizes[0], sizes[6], len(sizes)) == (128, 448, 14)
    radixes = cases(['resnest50d'], scaling='branches', tasks=['training'], **ONE)
    assert [case.branches for case in radixes] == [1, 2, 4]
    deep = cases(['skresnet18', 'skresnet101'], scaling='depth', tasks=['training'], size=96, **ONE)
    assert [(case.arch, case.size) for case in deep] == [('skresnet18', 96), ('skresnet101', 96)]


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        (dict(models=['skresnet43']), 'There is no model "skresnet43". Nearest: skresnet34'),
        (dict(models=['resnet50']), 'resnet50 is not an architecture of timm_sk'),
        (dict(dtypes=['float64']), 'Unknown dtype "float64": expected float32, bfloat16, float16.'),
        (dict(memory_formats=[]), 'Unknown memory format "": expected contiguous, channels_last.'),
        (dict(tasks=['test']), 'Unknown task "test"'),
        (dict(scaling='width'), 'Unknown axis "width": expected batch, resolution, branches, depth.'),
        (dict(models=['sknet_atto'], scaling='branches'), 'The number of branches of sknet_atto is fixed'),
    ],
)
def test_unknown_names(changed, message):
    arguments = dict(models=['skresnet18'], tasks=['training'], scaling='') | ONE | changed
    with pytest.raises(ValueError, match=message.replace('.', r'\.')):
        list(cases(arguments.pop('models'), **arguments))
