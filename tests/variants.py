"""Architectures for parametrized tests, and small models of them with random weights."""

import timm
import timm.models
import torch
from random_weights import fill_model, make_input
from torch import Tensor, nn

import timm_sk
import timm_sk.registry
from timm_sk.checkpoints import CHECKPOINTS

ARCHITECTURES = list(timm_sk.registry.architectures())
RESNEST_FAMILIES = ('resnest', 'resnest_upstreams')
RESNET_FAMILIES = ('sknet', 'sknet_simclr', 'sknet_upstreams', 'sknet_lucid', *RESNEST_FAMILIES)  # on timm's trunk
RESNETS = list(dict.fromkeys(row.arch for row in CHECKPOINTS.values() if row.family in RESNET_FAMILIES))
RESNESTS = list(dict.fromkeys(row.arch for row in CHECKPOINTS.values() if row.family in RESNEST_FAMILIES))
TIMM_SKNETS = ['skresnet18', 'skresnet34', 'skresnet50', 'skresnet50d', 'skresnext50_32x4d']
TIMM_RESNESTS = [
    'resnest14d',
    'resnest26d',
    'resnest50d',
    'resnest101e',
    'resnest200e',
    'resnest269e',
    'resnest50d_4s2x40d',
    'resnest50d_1s4x24d',
]
TIMM_NAMES = TIMM_SKNETS + TIMM_RESNESTS
LUCID_NAMES = ['sk_resnet_18', 'sk_resnet_34', 'sk_resnet_50', 'sk_resnext_50_32x4d']
SIMCLR_NAMES = [name for name in ARCHITECTURES if name.endswith('_simclr')]
SIMCLR_PROJ_NAMES = [name for name in ARCHITECTURES if name.endswith('_simclr_proj')]
# SK in a basic block and a bottleneck, a bare kernel; ResNeSt with a softmax, with a sigmoid and in a basic block
ONE_PER_BLOCK = ['skresnet18', 'sknet_atto', 'sk_resnet_18', 'resnest50d_4s2x40d', 'resnest50d_1s4x24d', 'resnest18']
# Nets that differ from another one in depth alone: shallow, both are the same net.
DEEPER = {
    'skresnet34': 'skresnet18',
    'skresnet50': 'skresnet26',
    'skresnet101': 'skresnet26',
    'skresnext50_32x4d': 'skresnext26_32x4d',
    'skresnext101_32x4d': 'skresnext26_32x4d',
    'sknet50': 'sknet26',
    'skresnet101_insight': 'skresnet50_insight',
    'skresnet34_mindcv': 'skresnet18_mindcv',
    'sknet101_holocron': 'sknet50_holocron',
    'sk_resnet_34': 'sk_resnet_18',
    'resnest26d': 'resnest14d',
    'resnest50d': 'resnest14d',
    'resnest200e': 'resnest101e',
    'resnest269e': 'resnest101e',
    'resnest152e': 'resnest101e',
    **dict.fromkeys(SIMCLR_NAMES[1:], SIMCLR_NAMES[0]),  # or with other widths, which `shallow` makes equal
    **dict.fromkeys(SIMCLR_PROJ_NAMES[1:], SIMCLR_PROJ_NAMES[0]),
    'resnest50_mindcv': 'resnest14_mindcv',
}
KINDS = [name for name in RESNETS if name not in DEEPER and name not in SIMCLR_PROJ_NAMES]  # which have another head
CIFAR, SHUFFLE, MOBILE, LSK = 'sknet29_16x32d', 'sk_shufflenetv2_x0_5', 'sk_mobilenetv2_100', 'lsknet_t'
TRUNKS = [*KINDS, CIFAR, SHUFFLE, MOBILE]  # of SK units and split attentions


def upstream(name: str, **kwargs: object) -> nn.Module:
    """timm's own model of a name that the registry gives to ours."""
    return getattr(timm.models, name)(**kwargs)


def shallow(name: str, **kwargs: object) -> nn.Module:
    """Our model, with few blocks, and narrow ones where it is on a ResNet trunk: in a fraction of the time."""
    few: dict[str, object] = dict(layers=[1, 2, 1, 1]) if name in RESNETS else {}
    if name == CIFAR:
        few = dict(layers=[1, 1, 1], base_width=8)
    elif name == LSK:
        few = dict(depths=[1, 2, 1, 1])
    elif few and name != 'sknet_atto':  # which is narrow
        few['channels'] = (32, 64, 64, 128)
    if name in SIMCLR_NAMES + SIMCLR_PROJ_NAMES:
        few |= dict(stem_width=16, sk_kwargs=dict(rd_channels=32))
    return timm.create_model(name, **{**few, **kwargs})


def filled(name: str, **kwargs: object) -> nn.Module:
    """Our shallow model with random weights in every layer, in eval mode."""
    return fill_model(shallow(name, **kwargs)).eval()


def stages(model: nn.Module) -> list[nn.Sequential]:
    """The stages of a trunk, each a sequence of blocks."""
    if hasattr(model, 'blocks'):
        return list(model.blocks)
    return [module for name, module in model.named_children() if name.startswith(('layer', 'stage', 'block'))]


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of all stages."""
    return [block for stage in stages(model) for block in stage]


def units_of(model: nn.Module) -> dict[str, nn.Module]:
    """The selective-kernel and split-attention units, by path."""
    kinds = timm_sk.SelectiveKernel, timm_sk.SplitAttention
    return {path: module for path, module in model.named_modules() if isinstance(module, kinds)}


@torch.no_grad()
def level_outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The outputs of stem and stages, computed one module after the other, and then what reaches the head."""
    trunk, last = stages(model), nn.Sequential()
    if hasattr(model, 'conv5'):
        steps, last = [model.conv1, model.maxpool, *trunk], model.conv5
    elif hasattr(model, 'blocks'):  # several stages have the same resolution
        stem, blocks, last = [model.conv_stem, model.bn1], model.blocks, nn.Sequential(model.conv_head, model.bn2)
        steps = [nn.Sequential(*stem, blocks[0]), *trunk[1:3], blocks[3:5], blocks[5:]]
    elif hasattr(model, 'patch_embed1'):
        parts = ('patch_embed', 'block', 'norm')
        steps = [nn.Sequential(*(model.get_submodule(f'{part}{stage}') for part in parts)) for stage in (1, 2, 3, 4)]
    else:
        stem = nn.Sequential(model.conv1, model.bn1, model.act1)
        steps = [stem, nn.Sequential(model.maxpool, trunk[0]), *trunk[1:]]
    outputs = []
    for step in [*steps, last]:
        x = step(x.clone())
        outputs.append(x)
    return outputs


def images(count: int = 2, channels: int = 3, size: int = 64, dtype: torch.dtype = torch.float32) -> Tensor:
    """A random batch [count, channels, size, size]."""
    return make_input((count, channels, size, size)).to(dtype)


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())
