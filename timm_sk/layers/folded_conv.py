"""Convolutions with folded norms, which reparameterization puts into a model.

A norm with running statistics is an affine map of each channel in eval mode, so it folds into the weight and bias of
the convolution before it. DropBlock and other identities in eval mode are removed; an activation becomes part of the
convolution. State dicts have other keys, so a checkpoint must be loaded before its model is folded.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import torch
from timm.layers import BatchNormAct2d, DropBlock2d, DropPath, FrozenBatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from ..errors import MismatchedCheckpointError
from ..ops import conv_bias_act
from .bypass import can_bypass, is_original, runs_as_known
from .merged_groups import MergedConv, arguments_of, merge_groups

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d, BatchNormAct2d, SyncBatchNormAct, FrozenBatchNormAct2d)
_IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout2d, DropBlock2d, DropPath)  # in eval mode
_ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: 'relu', nn.ReLU6: 'relu6'}


class FoldedConv(nn.Conv2d):
    """A convolution with bias that can add a shortcut and activate in the same pass.

    Input [B, in_channels, H, W], output [B, out_channels, H', W'].

    Args:
        conv: The convolution that it replaces.
        weight: Folded weight.
        bias: Folded bias [out_channels], or None.
    """

    padding: Any  # never a string

    def __init__(self, conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(**arguments_of(conv), bias=bias is not None)
        trains = conv.weight.requires_grad
        self.weight = nn.Parameter(weight, requires_grad=trains)
        if bias is not None:
            self.bias = nn.Parameter(bias, requires_grad=trains)
        self.activation = ''
        self.act: nn.Module = nn.Identity()  # an activation that needs a pass of its own
        self.wide_groups = conv.groups
        self.register_buffer('wide', None, persistent=False)
        self.packed: Tensor | None = None
        self.register_load_state_dict_pre_hook(_before_loading)
        self.train(conv.training)

    def absorb(self, act: nn.Module) -> None:
        """Include the activation that follows."""
        name = _ACTIVATIONS.get(type(act))
        if name is None:
            self.act = act
        else:
            self.activation = name

    def merge(self, groups: int) -> None:
        """Compute with fewer, wider groups, which give the same values; `weight` and the state dict stay.

        Args:
            groups: A divisor of the number of groups; that number itself undoes a merge.

        Raises:
            ValueError: If it does not divide the number of groups.
        """
        self.packed = None
        self.wide_groups = groups
        with torch.no_grad():
            self.wide = None if groups == self.groups else merge_groups(self.weight, self.groups, groups)

    def pack(self, input_shape: Sequence[int]) -> None:
        """Store the weight in the processor's layout too, for inference on inputs [B, C, H, W] in channels last.

        Copies of the module do not have it.
        """
        weight = self.weight if self.wide is None else self.wide
        self.packed = conv_bias_act.pack(
            weight, list(input_shape), self.stride, self.padding, self.dilation, self.wide_groups
        )

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        return self.act(self._convolve(x, self.bias, self.activation, shortcut))

    def convolve_only(self, x: Tensor) -> Tensor:
        """Convolve without bias and activation."""
        return self._convolve(x, None, '', None)

    def _convolve(self, x: Tensor, bias: Tensor | None, activation: str, shortcut: Tensor | None) -> Tensor:
        weight = self.weight if self.wide is None else self.wide
        return conv_bias_act.convolve(
            x,
            weight,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.wide_groups,
            activation,
            shortcut,
            self.packed,
        )

    def extra_repr(self) -> str:
        activation = f', activation={self.activation}' if self.activation else ''
        return super().extra_repr() + activation + (f', as {self.wide_groups} groups' if self.wide is not None else '')

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {'packed': None}

    def _apply(self, *args: Any, **kwargs: Any) -> nn.Module:
        self.packed = None
        return super()._apply(*args, **kwargs)


class FoldedConvNormAct(nn.Module):
    """A folded `ConvNormAct`.

    Args:
        conv: Convolution with norm and activation.
        aa: Anti-aliasing or an identity.
    """

    def __init__(self, conv: FoldedConv, aa: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.aa = aa
        self.train(conv.training)

    def layers(self) -> list[nn.Module]:
        """The modules in the order in which they run."""
        return [self.conv, self.aa]

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        return self.aa(self.conv(x, shortcut))


@torch.no_grad()
def fold(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Fold a norm in eval mode into the convolution before it, in float32 or wider.

    Returns:
        Weight and bias in the convolution's dtype, or None where they cannot be folded: the convolution is not a plain
        one with padding of zeros, the norm has no running statistics, or hooks or patches would not run.

    Raises:
        ValueError: If either is in train mode.
    """
    require_eval(conv, norm)
    affine: Any = norm  # the kinds of norm share attributes, but no type
    if type(norm) not in _NORMS or affine.running_mean is None or affine.running_var is None:
        return None
    if not is_plain(conv) or not can_bypass(norm):
        return None
    dtype = conv.weight.dtype
    wide = torch.promote_types(dtype, torch.float32)
    tensors = (conv.weight, conv.bias, affine.running_mean, affine.running_var, affine.weight, affine.bias)
    widened: list[Any] = [None if tensor is None else tensor.to(wide) for tensor in tensors]
    weight, bias, mean, variance, scale, shift = widened
    folded = nn.utils.fuse_conv_bn_weights(weight, bias, mean, variance, affine.eps, scale, shift)
    return folded[0].to(dtype), folded[1].to(dtype)


def is_plain(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a module is a convolution of its own weight, with a fixed padding of zeros, that need not be called."""
    return (
        type(module) in (nn.Conv2d, MergedConv)
        and can_bypass(module)
        and is_original(module, '_conv_forward')
        and module.padding_mode == 'zeros'
        and not isinstance(module.padding, str)
        and 'weight' in module._parameters  # else computed from others, by pruning or a parametrization
    )


def fold_norm(parent: nn.Module, conv: str, norm: str, *, act: str | None = None, drop: str | None = None) -> bool:
    """Fold a norm into the convolution before it, in place, where that is possible.

    The convolution becomes a `FoldedConv`, the others identities. The parent must be one that `runs_as_known`.

    Args:
        parent: Module that contains the layers.
        conv: Path of the convolution in the parent.
        norm: Path of the norm, which follows directly.
        act: Path of the activation after the norm.
        drop: Path of a layer between norm and activation, such as DropBlock.

    Returns:
        Whether the norm was folded.

    Raises:
        ValueError: If the parent, the convolution or the norm is in train mode.
    """
    require_eval(parent)
    if not runs_as_known(parent):
        return False
    conv_layer, norm_layer = parent.get_submodule(conv), parent.get_submodule(norm)
    inner_drop, inner_act = (
        getattr(norm_layer, name, nn.Identity()) for name in ('drop', 'act')
    )  # timm's BatchNormAct2d
    if type(inner_drop) not in _IDENTITIES or not isinstance(conv_layer, nn.Conv2d):
        return False
    folded = fold(conv_layer, norm_layer)
    if folded is None:
        return False
    unit = FoldedConv(conv_layer, *folded)
    put(parent, norm, nn.Identity())
    without_drop = drop is None or is_identity(parent.get_submodule(drop))
    if drop is not None and without_drop:
        put(parent, drop, nn.Identity())
    if type(inner_act) is not nn.Identity:
        unit.absorb(inner_act)
    elif act is not None and without_drop and can_bypass(parent.get_submodule(act)):
        unit.absorb(parent.get_submodule(act))
        put(parent, act, nn.Identity())
    put(parent, conv, unit)
    return True


def is_identity(module: nn.Module) -> bool:
    """Whether a module does nothing in eval mode, and need not be called."""
    return type(module) in _IDENTITIES and can_bypass(module)


def fold_sequence(layers: nn.Sequential) -> None:
    """Fold every norm that follows a convolution directly in a sequence, and the activation after it.

    Raises:
        ValueError: If the sequence is in train mode.
    """
    names = list(layers._modules)  # named_children leaves out a module's second name
    for index, name in enumerate(names[:-1]):
        after = names[index + 2] if index + 2 < len(names) else None
        act = after if after is not None and type(layers.get_submodule(after)) in _ACTIVATIONS else None
        fold_norm(layers, name, names[index + 1], act=act)


def put(parent: nn.Module, path: str, module: nn.Module) -> None:
    """Replace a submodule by its path; the new one takes over the mode."""
    owner, _, name = path.rpartition('.')
    setattr(parent.get_submodule(owner), name, module.train(parent.get_submodule(path).training))


def require_eval(*modules: nn.Module) -> None:
    """Refuse modules in train mode, whose norms use batch statistics."""
    for module in modules:
        if module.training:
            raise ValueError(
                f'Norms fold into convolutions in eval mode only, got a {type(module).__name__} in train mode: load '
                'the weights, call eval() on the model, then reparameterize it.'
            )


def _before_loading(module: FoldedConv, state_dict: Mapping[str, Tensor], prefix: str, *unused: object) -> None:
    """Refuse the weight of an unfolded model; drop what was made of the old weight."""
    if module.bias is not None and f'{prefix}weight' in state_dict and f'{prefix}bias' not in state_dict:
        raise MismatchedCheckpointError(
            f'A folded model needs folded weights, got {prefix}weight without a bias: load the checkpoint into the '
            'unfolded model, then fold it (`timm.utils.reparameterize_model`, `timm_sk.deploy`).'
        )
    module.merge(module.groups)
