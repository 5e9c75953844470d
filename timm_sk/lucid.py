"""The selective-kernel and ResNeSt classes of the Lucid library's documents, with their signatures, in PyTorch.

Code written for `lucid.nn.SelectiveKernel`, `lucid.models.SKNet`, `lucid.models.ResNeSt` and their factories (versions
1 and 2) runs after the import is changed to this module. docs/lucid.md maps every argument to timm's and to the papers'
letters; `timm_sk.pretrained.to_our_layout` renames Lucid's state dicts. `timm.create_model` builds the same
SKNets as `sk_resnet_18`, `sk_resnet_34`, `sk_resnet_50` and `sk_resnext_50_32x4d`.

As in Lucid, arguments may be positional and a batch of 1 is accepted in train mode.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from timm.models import ResNet
from torch import nn

from .models.lucid_units import BareSelectiveKernel, RadixMajorSplitAttention
from .models.resnest_blocks import SplitAttentionBottleneck
from .models.resnet import replace_shortcut_pools
from .models.sknet_lucid import SKBasicBlock, SKBottleneck

__all__ = [
    'ResNeSt',
    'ResNeStBottleneck',
    'SKBasicBlock',
    'SKBottleneck',
    'SKNet',
    'SelectiveKernel',
    'resnest_14',
    'resnest_26',
    'resnest_50',
    'resnest_50_1s4x24d',
    'resnest_50_4s2x40d',
    'resnest_101',
    'resnest_200',
    'resnest_269',
    'sk_resnet_18',
    'sk_resnet_34',
    'sk_resnet_50',
    'sk_resnext_50_32x4d',
]


T = TypeVar('T', bound=nn.Module)


class SelectiveKernel(BareSelectiveKernel):
    """`lucid.nn.SelectiveKernel`: `BareSelectiveKernel` that accepts a batch of 1 in train mode.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of each branch and of the output.
        kernel_sizes: Size of each branch's kernel, 1 or more.
        stride: Stride of every branch.
        padding: Padding of every branch; None for `k // 2`, 'same' for `(k - 1) // 2`, 'valid' for none.
        groups: Convolution groups of each branch.
        reduction: The attention's width is `out_channels // reduction`.
        **kwargs: Further arguments of `BareSelectiveKernel`, such as `select`.

    Raises:
        ValueError: As `BareSelectiveKernel`, but for a batch of 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_sizes: Sequence[int],
        stride: int = 1,
        padding: int | str | None = None,
        groups: int = 1,
        reduction: int = 16,
        **kwargs: Any,
    ) -> None:
        shape: dict[str, Any] = dict(stride=stride, padding=padding, groups=groups, reduction=reduction)
        super().__init__(in_channels, out_channels, kernel_sizes, **shape, single_image=True, **kwargs)


class _LucidResNet(ResNet):
    """What Lucid's nets share: timm's trunk with other shortcuts and another deep stem, and the stages as `layers`."""

    def __init__(
        self,
        block: type[nn.Module],
        layers: Sequence[int],
        num_classes: int,
        base_width: int,
        cardinality: int,
        **resnet_args: Any,
    ) -> None:
        widths = dict(base_width=base_width, cardinality=cardinality)
        super().__init__(block, tuple(layers), num_classes, **widths, **{'zero_init_last': False, **resnet_args})
        self.base_width = base_width
        self.cardinality = cardinality
        # with `avg_down`, a pool over 3x3 pixels before every shortcut's convolution, at stride 1 too
        replace_shortcut_pools(self, lambda stride: nn.AvgPool2d(3, stride, padding=1))
        if resnet_args.get('stem_type') == 'deep':
            # no norm and activation after the stem's last convolution; without them the pool's input has negative
            # values, so Lucid's zero padding differs from torch's
            self.bn1, self.act1 = nn.Identity(), nn.Identity()
            self.maxpool = nn.Sequential(nn.ConstantPad2d(1, 0.0), nn.MaxPool2d(3, stride=2))

    @property
    def layers(self) -> list[nn.Module]:
        return [self.layer1, self.layer2, self.layer3, self.layer4]


class SKNet(_LucidResNet):
    """`lucid.models.SKNet`: a ResNet of residual blocks around a selective-kernel unit, on timm's trunk.

    Input [B, in_channels, H, W], output [B, num_classes]. It has all methods of timm's ResNet.

    Args:
        block: `SKBasicBlock`, `SKBottleneck`, or a class with their signature.
        layers: Number of blocks in each stage.
        num_classes: Number of classes.
        kernel_sizes: Size of each branch's kernel.
        base_width: Width of a group in the first stage; scales the inner width of all blocks.
        cardinality: Convolution groups of each branch.
        **resnet_args: Lucid's `in_channels` (3), `stem_width` (64, of the deep stem), `stem_type` (None or 'deep'),
            `avg_down` (False), `channels` (64, 128, 256, 512) and `block_args`, and any keyword of
            `timm.models.ResNet`. `block_args['sk_kwargs']` takes further arguments of
            `timm_sk.models.lucid_units.BareSelectiveKernel`, such as `select` and `reduction`.

    Attributes:
        layers: The stages, each a sequence of blocks; `kernel_sizes`, `base_width` and `cardinality` are those given.

    Raises:
        TypeError: For an unknown keyword; names it.
        ValueError: If a value is out of range.
    """

    def __init__(
        self,
        block: type[nn.Module],
        layers: Sequence[int],
        num_classes: int = 1000,
        kernel_sizes: Sequence[int] = [3, 5],
        base_width: int = 64,
        cardinality: int = 1,
        **resnet_args: Any,
    ) -> None:
        resnet_args = _as_timm_arguments(resnet_args, caller='SKNet')
        block_args = dict(resnet_args.pop('block_args', None) or {})
        own_sk_kwargs = dict(kernel_sizes=list(kernel_sizes), single_image=True)
        block_args['sk_kwargs'] = {**own_sk_kwargs, **block_args.get('sk_kwargs', {})}
        super().__init__(block, layers, num_classes, base_width, cardinality, block_args=block_args, **resnet_args)
        self.kernel_sizes = list(kernel_sizes)


class ResNeStBottleneck(SplitAttentionBottleneck):
    """Lucid's `_ResNeStBottleneck`: `SplitAttentionBottleneck` with Lucid's split attention.

    Arguments are those of `timm_sk.models.resnest.SplitAttentionBottleneck`.
    """

    def make_unit(self, channels: int, **unit_kwargs: Any) -> RadixMajorSplitAttention:
        summed = channels * unit_kwargs['radix']
        return RadixMajorSplitAttention(channels, rd_ratio=summed // 4 / max(summed, 1), rd_divisor=1, **unit_kwargs)


_ResNeStBottleneck = ResNeStBottleneck  # the name in the examples of Lucid's documents


class ResNeSt(_LucidResNet):
    """`lucid.models.ResNeSt`: a ResNet of residual blocks around split attention, on timm's trunk.

    Input [B, in_channels, H, W], output [B, num_classes]. It has all methods of timm's ResNet.

    Args:
        block: `ResNeStBottleneck`, or a class with its signature.
        layers: Number of blocks in each stage.
        num_classes: Number of classes.
        base_width: Width of a group in the first stage; scales the inner width of all blocks.
        stem_width: Channels of the deep stem's first two convolutions; the third has twice as many.
        cardinality: Groups of the split attention.
        radix: Number of branches of the split attention.
        avd: Average pooling after the split attention where the resolution falls.
        **resnet_args: Lucid's `in_channels` (3), `avg_down` (False), `channels` (64, 128, 256, 512) and `block_args`,
            and any keyword of `timm.models.ResNet`.

    Attributes:
        layers: The stages, each a sequence of blocks; the arguments from `base_width` to `avd` are attributes too.

    Raises:
        TypeError: For an unknown keyword; names it.
        ValueError: If a value is out of range.
    """

    def __init__(
        self,
        block: type[nn.Module],
        layers: Sequence[int],
        num_classes: int = 1000,
        base_width: int = 64,
        stem_width: int = 32,
        cardinality: int = 1,
        radix: int = 2,
        avd: bool = True,
        **resnet_args: Any,
    ) -> None:
        resnet_args = _as_timm_arguments(resnet_args, taken=('stem_type', 'stem_width'), caller='ResNeSt')
        block_args = dict(radix=radix, avd=avd) | dict(resnet_args.pop('block_args', None) or {})
        resnet_args |= dict(stem_type='deep', stem_width=stem_width, block_args=block_args)
        super().__init__(block, layers, num_classes, base_width, cardinality, **resnet_args)
        self.stem_width = stem_width
        self.radix = radix
        self.avd = avd


def _as_timm_arguments(resnet_args: dict[str, Any], *, taken: Sequence[str] = (), caller: str) -> dict[str, Any]:
    """Translate Lucid's names of a ResNet's arguments to timm's, and refuse unknown ones."""
    own = {'self', 'block', 'layers', 'num_classes', 'cardinality', 'base_width', *taken}
    known = {'in_channels', *inspect.signature(ResNet.__init__).parameters} - own
    unknown = sorted(set(resnet_args) - known)
    if unknown:
        raise TypeError(f'{caller} takes no argument {", ".join(unknown)}. Further arguments are: {sorted(known)}.')
    renamed = {{'in_channels': 'in_chans'}.get(name, name): value for name, value in resnet_args.items()}
    if len(renamed) < len(resnet_args):
        raise ValueError('in_channels and in_chans are the same argument, got both: pass one of them.')
    if renamed.get('stem_type', '') is None:
        renamed['stem_type'] = ''
    return renamed


def _factory(network: Callable[..., T], block: type[nn.Module], layers: Sequence[int], **own: int) -> Callable[..., T]:
    """One of Lucid's factories; its keywords are those of `SKNet` or `ResNeSt`."""

    def build(num_classes: int = 1000, **kwargs: Any) -> T:
        return network(block, layers, num_classes, **own, **kwargs)

    return build


sk_resnet_18 = _factory(SKNet, SKBasicBlock, (2, 2, 2, 2))
sk_resnet_34 = _factory(SKNet, SKBasicBlock, (3, 4, 6, 3))
sk_resnet_50 = _factory(SKNet, SKBottleneck, (3, 4, 6, 3))
sk_resnext_50_32x4d = _factory(SKNet, SKBottleneck, (3, 4, 6, 3), cardinality=32, base_width=4)
resnest_14 = _factory(ResNeSt, ResNeStBottleneck, (1, 1, 1, 1))
resnest_26 = _factory(ResNeSt, ResNeStBottleneck, (2, 2, 2, 2))
resnest_50 = _factory(ResNeSt, ResNeStBottleneck, (3, 4, 6, 3))
resnest_101 = _factory(ResNeSt, ResNeStBottleneck, (3, 4, 23, 3), stem_width=64)
resnest_200 = _factory(ResNeSt, ResNeStBottleneck, (3, 24, 36, 3), stem_width=64)
resnest_269 = _factory(ResNeSt, ResNeStBottleneck, (3, 30, 48, 8), stem_width=64)
resnest_50_4s2x40d = _factory(ResNeSt, ResNeStBottleneck, (3, 4, 6, 3), base_width=40, cardinality=2, radix=4)
resnest_50_1s4x24d = _factory(ResNeSt, ResNeStBottleneck, (3, 4, 6, 3), base_width=24, cardinality=4, radix=1)
