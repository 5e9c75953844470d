"""SK-ResNets of SimCLRv2, as google-research/simclr computes them.

Paper: "Big Self-Supervised Models are Strong Semi-Supervised Learners" (Chen, Kornblith, Swersky, Norouzi, Hinton,
NeurIPS 2020, arXiv:2006.10029). Code: resnet.py with `sk_ratio=0.0625`. Inputs are in [0, 1]. Both branches of a unit
are dense 3x3 convolutions without dilation. The pools have TensorFlow's padding, which the PyTorch port does not
reproduce; a stage that `output_stride` dilates, which upstream lacks, has the pool of stride 1.

The nets that end in `_proj` have the first layer of the projection head below the classifier, where the paper's
fine-tuning on 1 % and 10 % of the labels begins (section 3.1).
"""

from typing import Any

from timm.layers import get_device_dtype
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.pooled_norm import require_batch
from ..registry import register
from ._builder import family_cfgs
from .pools import SameAveragePool, SamePool
from .resnet import StemPoolResNet, build_resnet, replace_shortcut_pools
from .sk_blocks import SelectiveKernelBottleneck

default_cfgs = family_cfgs('sknet_simclr')


def _shortcut_pool(stride: int) -> nn.Module:
    """The 2x2 average pool before a shortcut's convolution: SAME at stride 1, else with zeros at the end, counted."""
    if stride == 1:
        return SameAveragePool(2, 1)
    return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.AvgPool2d(2, stride))


class SimCLRResNet(StemPoolResNet):
    """Trunk with the pools of TensorFlow's nets. Arguments as for `timm.models.ResNet`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        replace_shortcut_pools(self, _shortcut_pool)


class ProjectionResNet(SimCLRResNet):
    """Trunk whose classifier sits on the first layer of the projection head: `proj`, [B, C] -> [B, C].

    `forward_head(x, pre_logits=True)` returns the output of `proj`. Without a global pool, `proj` is left out.

    Raises:
        ValueError: If the global pool changes the number of channels, or at a forward pass of one image in train mode.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.proj = make_projection_layer(self.num_features, self.num_features, **get_device_dtype(self))
        self.add_module('fc', self._modules.pop('fc'))  # last, as in the forward pass
        self._check_pool()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        super().reset_classifier(num_classes, global_pool)
        self._check_pool()

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.global_pool(x)
        if not self.global_pool.is_identity():
            require_batch(x, self.proj[1])
            x = self.proj(x)
        if self.drop_rate:
            x = F.dropout(x, p=float(self.drop_rate), training=self.training)
        return x if pre_logits else self.fc(x)

    def _check_pool(self) -> None:
        if self.global_pool.feat_mult() != 1:
            raise ValueError(
                f'The projection layer takes {self.num_features} channels, global_pool="{self.global_pool.pool_type}" '
                'gives twice as many: use "avg", "max" or "avgmax".'
            )


def make_projection_layer(in_features: int, out_features: int, **factory: Any) -> nn.Sequential:
    """A layer of the projection head: linear without bias, BatchNorm and ReLU."""
    linear = nn.Linear(in_features, out_features, bias=False, **factory)
    nn.init.normal_(linear.weight, std=0.01)
    return nn.Sequential(linear, nn.BatchNorm1d(out_features, **factory), nn.ReLU(inplace=True))


def _simclr(variant: str, pretrained: bool, layers: list[int], width: int, kwargs: dict[str, Any]) -> nn.Module:
    """A net of so many times the width of ResNet; its attention has 1/16 of the channels, at least 32."""
    channels = [width * stage for stage in (64, 128, 256, 512)]
    sk_kwargs = dict(kernel_size=[3, 3], split_input=False, rd_channels=[max(c // 16, 32) for c in channels])
    model_args = dict(
        block=SelectiveKernelBottleneck,
        layers=layers,
        channels=tuple(channels),
        stem_type='deep',
        stem_width=32 * width,
        stem_pool=SamePool,
        avg_down=True,
        zero_init_last=True,
        block_args=dict(sk_kwargs=sk_kwargs),
    )
    trunk = ProjectionResNet if variant.endswith('_proj') else SimCLRResNet
    return build_resnet(variant, pretrained, model_args, kwargs, trunk=trunk)


@register
def skresnet50x1_simclr(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNet-50 of SimCLRv2."""
    return _simclr('skresnet50x1_simclr', pretrained, [3, 4, 6, 3], 1, kwargs)


@register
def skresnet50x2_simclr(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNet-50 of SimCLRv2, twice as wide."""
    return _simclr('skresnet50x2_simclr', pretrained, [3, 4, 6, 3], 2, kwargs)


@register
def skresnet101x1_simclr(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNet-101 of SimCLRv2."""
    return _simclr('skresnet101x1_simclr', pretrained, [3, 4, 23, 3], 1, kwargs)


@register
def skresnet101x2_simclr(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNet-101 of SimCLRv2, twice as wide."""
    return _simclr('skresnet101x2_simclr', pretrained, [3, 4, 23, 3], 2, kwargs)


@register
def skresnet152x1_simclr(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNet-152 of SimCLRv2."""
    return _simclr('skresnet152x1_simclr', pretrained, [3, 8, 36, 3], 1, kwargs)


@register
def skresnet152x2_simclr(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNet-152 of SimCLRv2, twice as wide."""
    return _simclr('skresnet152x2_simclr', pretrained, [3, 8, 36, 3], 2, kwargs)


@register
def skresnet152x3_simclr(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SK-ResNet-152 of SimCLRv2, three times as wide."""
    return _simclr('skresnet152x3_simclr', pretrained, [3, 8, 36, 3], 3, kwargs)


@register
def skresnet50x1_simclr_proj(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """`skresnet50x1_simclr` with the first layer of the projection head."""
    return _simclr('skresnet50x1_simclr_proj', pretrained, [3, 4, 6, 3], 1, kwargs)


@register
def skresnet50x2_simclr_proj(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """`skresnet50x2_simclr` with the first layer of the projection head."""
    return _simclr('skresnet50x2_simclr_proj', pretrained, [3, 4, 6, 3], 2, kwargs)


@register
def skresnet101x1_simclr_proj(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """`skresnet101x1_simclr` with the first layer of the projection head."""
    return _simclr('skresnet101x1_simclr_proj', pretrained, [3, 4, 23, 3], 1, kwargs)


@register
def skresnet101x2_simclr_proj(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """`skresnet101x2_simclr` with the first layer of the projection head."""
    return _simclr('skresnet101x2_simclr_proj', pretrained, [3, 4, 23, 3], 2, kwargs)


@register
def skresnet152x1_simclr_proj(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """`skresnet152x1_simclr` with the first layer of the projection head."""
    return _simclr('skresnet152x1_simclr_proj', pretrained, [3, 8, 36, 3], 1, kwargs)


@register
def skresnet152x2_simclr_proj(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """`skresnet152x2_simclr` with the first layer of the projection head."""
    return _simclr('skresnet152x2_simclr_proj', pretrained, [3, 8, 36, 3], 2, kwargs)


@register
def skresnet152x3_simclr_proj(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """`skresnet152x3_simclr` with the first layer of the projection head."""
    return _simclr('skresnet152x3_simclr_proj', pretrained, [3, 8, 36, 3], 3, kwargs)
