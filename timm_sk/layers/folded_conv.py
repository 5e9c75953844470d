"""What reparameterization leaves behind: convolutions that hold their norm's scale and shift.

A norm with running statistics is an affine map of each channel in eval mode, so it folds into the weight and bias of
the convolution before it. DropBlock and the like, identities in eval mode, go; an activation becomes part of the
convolution. Folded modules have other keys: load a checkpoint first, fold then.
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
    """A convolution with bias and, in the same pass where that is possible, a shortcut's sum and an activation.

    Input [B, in_channels, H, W], output [B, out_channels, H', W'].

    Args:
        conv: The convolution whose numbers it has.
        weight: Its weight.
        bias: Its bias [out_channels], or None.
    """

    padding: Any  # never a string

    def __init__(self, conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(**arguments_of(conv), bias=bias is not None)
        trains = conv.weight.requires_grad
        self.weight = nn.Parameter(weight, requires_grad=trains)
        if bias is not None:
            self.bias = nn.Parameter(bias, requires_grad=trains)
        self.activation = ''
        self.act: nn.Module = nn.Identity()  # one that no convolution has in its pass
        self.wide_groups = conv.groups
        self.register_buffer('wide', None, persistent=False)
        self.packed: Tensor | None = None
        self.register_load_state_dict_pre_hook(_before_loading)
        self.train(conv.training)

    def absorb(self, act: nn.Module) -> None:
        """Take over the activation that follows."""
        name = _ACTIVATIONS.get(type(act))
        if name is None:
            self.act = act
        else:
            self.activation = name

    def merge(self, groups: int) -> None:
        """Compute with fewer, wider groups, which give the same values; `weight` and the state dict stay.

        Args:
            groups: A divisor of the convolution's groups; those themselves undo it.

        Raises:
            ValueError: If it is not.
        """
        self.packed = None
        self.wide_groups = groups
        with torch.no_grad():
            self.wide = None if groups == self.groups else merge_groups(self.weight, self.groups, groups)

    def pack(self, input_shape: Sequence[int]) -> None:
        """Keep the weight in the processor's layout too, for inference on inputs [B, C, H, W] that are channels last.

        A copy of the module does without.
        """
        weight = self.weight if self.wide is None else self.wide
        self.packed = conv_bias_act.pack(
            weight, list(input_shape), self.stride, self.padding, self.dilation, self.wide_groups
        )

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        return self.act(self._convolve(x, self.bias, self.activation, shortcut))

    def convolve_alone(self, x: Tensor) -> Tensor:
        """The convolution's raw output, without bias and activation."""
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
    """What `ConvNormAct` becomes: a folded convolution, and the anti-aliasing where there is one.

    Args:
        conv: The convolution, with the activation.
        aa: The anti-aliasing or an identity.
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
    """Weight and bias of the convolution that does what `conv` and, in eval mode, `norm` do.

    The arithmetic is in float32 or wider, the result in the convolution's dtype.

    Returns:
        Weight and bias, or None where they cannot be folded: the convolution is not a plain one with padding of zeros,
        the norm has no running statistics, such as a GroupNorm, or hooks or patches would not run.

    Raises:
        ValueError: If either is in train mode.
    """
    require_eval(conv, norm)
    stated: Any = norm  # the kinds of norm share names, no type
    if type(norm) not in _NORMS or stated.running_mean is None or stated.running_var is None:
        return None
    if not is_plain(conv) or not can_bypass(norm):
        return None
    wide = torch.promote_types(conv.weight.dtype, torch.float32)
    mean, variance = stated.running_mean.to(wide), stated.running_var.to(wide)
    scale = (variance + stated.eps).rsqrt()
    if stated.weight is not None:
        scale = scale * stated.weight.to(wide)
    shift = -mean * scale
    if conv.bias is not None:
        shift = shift + conv.bias.to(wide) * scale
    if stated.bias is not None:
        shift = shift + stated.bias.to(wide)
    weight = (conv.weight.to(wide) * scale[:, None, None, None]).to(conv.weight.dtype)
    return weight, shift.to(conv.weight.dtype)


def is_plain(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a module is a convolution of its own weight, padded by numbers of zeros, that need not be called."""
    if (
        type(module) not in (nn.Conv2d, MergedConv)
        or not can_bypass(module)
        or not is_original(module, '_conv_forward')
    ):
        return False
    if module.padding_mode != 'zeros' or isinstance(module.padding, str):
        return False
    return 'weight' in module._parameters  # else computed from others, by pruning or a parametrization


def fold_norm(parent: nn.Module, conv: str, norm: str, *, act: str | None = None, drop: str | None = None) -> bool:
    """Fold a norm into the convolution before it, in place, where that is possible.

    The convolution becomes a `FoldedConv`, the others identities, so that `parent` computes the same; so it must be one
    whose way of running its parts is known.

    Args:
        parent: A module that has them.
        conv: Path of the convolution in it, as the others.
        norm: Path of the norm, which follows directly.
        act: Path of an activation that follows the norm.
        drop: Path of a layer between norm and activation that may be one like DropBlock.

    Returns:
        Whether it was done.

    Raises:
        ValueError: If the parent or one of these is in train mode.
    """
    require_eval(parent)
    if not runs_as_known(parent):
        return False
    conv_layer, norm_layer = parent.get_submodule(conv), parent.get_submodule(norm)
    inner = [getattr(norm_layer, name, nn.Identity()) for name in ('drop', 'act')]  # of timm's norms with activation
    if type(inner[0]) not in _IDENTITIES:
        return False
    if not isinstance(conv_layer, nn.Conv2d):
        return False
    folded = fold(conv_layer, norm_layer)
    if folded is None:
        return False
    unit = FoldedConv(conv_layer, *folded)
    acts = [inner[1]] if type(inner[1]) is not nn.Identity else []
    put(parent, norm, nn.Identity())
    drops = drop is None or is_identity(parent.get_submodule(drop))
    if drop is not None and drops:
        put(parent, drop, nn.Identity())
    if act is not None and drops and not acts and can_bypass(parent.get_submodule(act)):
        acts = [parent.get_submodule(act)]
        put(parent, act, nn.Identity())
    for layer in acts:
        unit.absorb(layer)
    put(parent, conv, unit)
    return True


def is_identity(module: nn.Module) -> bool:
    """Whether a module does nothing in eval mode, and need not be called."""
    return type(module) in _IDENTITIES and can_bypass(module)


def fold_sequence(layers: nn.Sequential) -> None:
    """Fold every norm that follows a convolution directly in a sequence, and the activation after it.

    Raises:
        ValueError: If it is in train mode.
    """
    names = list(layers._modules)  # also those of a module that is there twice
    for index, name in enumerate(names[:-1]):
        after = names[index + 2] if index + 2 < len(names) else None
        act = after if after is not None and type(layers.get_submodule(after)) in _ACTIVATIONS else None
        fold_norm(layers, name, names[index + 1], act=act)


def put(parent: nn.Module, path: str, module: nn.Module) -> None:
    """Set a submodule by its path, in the mode of the one that was there."""
    owner, _, name = path.rpartition('.')
    setattr(parent.get_submodule(owner), name, module.train(parent.get_submodule(path).training))


def require_eval(*modules: nn.Module) -> None:
    """Refuse modules in train mode, whose norms still look at the batch."""
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
