"""SK-ResNets of SimCLRv2, as google-research/simclr computes them.

Paper: "Big Self-Supervised Models are Strong Semi-Supervised Learners" (Chen, Kornblith, Swersky, Norouzi, Hinton,
NeurIPS 2020, arXiv:2006.10029). Code: resnet.py with `sk_ratio=0.0625`. Inputs are in [0, 1]. Both branches of a unit
are dense 3x3 convolutions without dilation. The pools have TensorFlow's padding, which the PyTorch port does not
reproduce; a stage that `output_stride` dilates, which upstream lacks, has the pool of stride 1.

The nets that end in `_proj` have the first layer of the projection head below the classifier, where the paper's
fine-tuning on 1 % and 10 % of the labels begins (section 3.1).
"""

import os
from typing import Any

from timm.layers import get_device_dtype
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.pooled_norm import require_batch
from ..pretrained import load_checked, read_checkpoint
from ..pretrained.convert import convert_simclr_head
from ..registry import Entrypoint, register
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
        self.proj = _projection_layer(self.num_features, self.num_features, **get_device_dtype(self))
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


def _projection_layer(in_features: int, out_features: int, **factory: Any) -> nn.Sequential:
    """A layer of the projection head: linear without bias, BatchNorm and ReLU."""
    linear = nn.Linear(in_features, out_features, bias=False, **factory)
    nn.init.normal_(linear.weight, std=0.01)
    return nn.Sequential(linear, nn.BatchNorm1d(out_features, **factory), nn.ReLU(inplace=True))


def simclr_projection(path: str | os.PathLike[str]) -> nn.Sequential:
    """Load the projection head that a pretrained checkpoint of SimCLRv2 holds beside the net.

    `head(model.forward_head(model.forward_features(x), pre_logits=True))` is the projection z of the paper, with
    `model` a net that does not end in `_proj`. Only the head's tensors of a TensorFlow checkpoint are read.

    Args:
        path: The `.index` of a TensorFlow checkpoint, or a file of the PyTorch port.

    Returns:
        Three layers in eval mode, of which the first two end with ReLU: [B, C] -> [B, 128].

    Raises:
        FileNotFoundError: If there is no such file.
        UnreadableCheckpointError: If it is damaged or of another format.
        MismatchedCheckpointError: If it has no such head.
    """
    state_dict = convert_simclr_head(read_checkpoint(path, wanted=_is_head_variable))
    layers = [_projection_layer(*state_dict[f'{index}.weight'].t().shape) for index in (0, 3, 6)]
    head = nn.Sequential(*(module for layer in layers for module in layer))[:-1]
    load_checked(head, state_dict)
    return head.eval()


def _is_head_variable(name: str) -> bool:
    return name.startswith('head_contrastive/') and not name.endswith('/Momentum')


def _register(arch: str, layers: list[int], width: int, trunk: type[SimCLRResNet] = SimCLRResNet) -> Entrypoint:
    """Register a net of `width` times ResNet's channels; its attention has 1/16 of them, at least 32."""
    channels = (64 * width, 128 * width, 256 * width, 512 * width)
    sk_kwargs = dict(kernel_size=[3, 3], split_input=False, rd_channels=[max(c // 16, 32) for c in channels])
    model_args = dict(
        block=SelectiveKernelBottleneck,
        layers=layers,
        channels=channels,
        stem_type='deep',
        stem_width=32 * width,
        stem_pool=SamePool,
        avg_down=True,
        zero_init_last=True,
        block_args=dict(sk_kwargs=sk_kwargs),
    )

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_resnet(arch, pretrained, model_args, kwargs, trunk=trunk)

    head = ' with the first layer of the projection head' if trunk is ProjectionResNet else ''
    entrypoint.__name__ = entrypoint.__qualname__ = arch
    entrypoint.__doc__ = f'SK-ResNet-{3 * sum(layers) + 2} of SimCLRv2, {width} times as wide as ResNet{head}.'
    return register(entrypoint)


_50, _101, _152 = [3, 4, 6, 3], [3, 4, 23, 3], [3, 8, 36, 3]

skresnet50x1_simclr = _register('skresnet50x1_simclr', _50, 1)
skresnet50x2_simclr = _register('skresnet50x2_simclr', _50, 2)
skresnet101x1_simclr = _register('skresnet101x1_simclr', _101, 1)
skresnet101x2_simclr = _register('skresnet101x2_simclr', _101, 2)
skresnet152x1_simclr = _register('skresnet152x1_simclr', _152, 1)
skresnet152x2_simclr = _register('skresnet152x2_simclr', _152, 2)
skresnet152x3_simclr = _register('skresnet152x3_simclr', _152, 3)
skresnet50x1_simclr_proj = _register('skresnet50x1_simclr_proj', _50, 1, ProjectionResNet)
skresnet50x2_simclr_proj = _register('skresnet50x2_simclr_proj', _50, 2, ProjectionResNet)
skresnet101x1_simclr_proj = _register('skresnet101x1_simclr_proj', _101, 1, ProjectionResNet)
skresnet101x2_simclr_proj = _register('skresnet101x2_simclr_proj', _101, 2, ProjectionResNet)
skresnet152x1_simclr_proj = _register('skresnet152x1_simclr_proj', _152, 1, ProjectionResNet)
skresnet152x2_simclr_proj = _register('skresnet152x2_simclr_proj', _152, 2, ProjectionResNet)
skresnet152x3_simclr_proj = _register('skresnet152x3_simclr_proj', _152, 3, ProjectionResNet)
