"""What an SK unit does to memory, stage by stage: the bytes that each stage moves at least, and steps that run it.

The least traffic of a stage reads every operand once and writes every result once. For M branches of B * C * H * W
elements that is M maps for `fuse`, M + 1 for `select`, 2 * M + 1 for its backward pass, and M + 1 for the convolutions
that make the branches; descriptors, logits and weights are counted too, and are next to nothing.
"""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timm_sk import ops
from timm_sk.inference.deployment import deploy
from timm_sk.layers import SelectiveKernel
from timm_sk.ops import reference

INPUT_SETS = 3  # of which each is beyond a GPU's cache at the shapes that are measured

Results = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage.

    Attributes:
        name: Name in the CSV.
        implementation: 'triton' where `timm_sk.ops` launches kernels on such branches, else 'torch'.
        least_bytes: Bytes of its least traffic.
        step: Function that runs it on the input set of a running number.
        reference: The same in plain PyTorch; None where that is the same code.
        expected: Function that computes its results on the first input set in float32; None if nothing is compared.
    """

    name: str
    implementation: str
    least_bytes: int
    step: Callable[[int], Results]
    reference: Callable[[int], Results] | None = None
    expected: Callable[[], Results] | None = None


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the elements of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def runs_on(branches: list[Tensor]) -> str:
    """What `timm_sk.ops` computes with on such branches: 'triton' or 'torch'."""
    return 'triton' if ops.runs_kernels(branches) else 'torch'


class Place(NamedTuple):
    """What the tensors of a measurement have in common."""

    dtype: torch.dtype
    memory_format: torch.memory_format
    device: torch.device

    def draw(self, *shape: int, seed: int) -> Tensor:
        """A random tensor."""
        generator = torch.Generator(self.device).manual_seed(seed)
        x = torch.randn(*shape, generator=generator, device=self.device).to(self.dtype)
        return x.contiguous(memory_format=self.memory_format) if x.dim() == 4 else x


def operations(shape: Sequence[int], place: Place, *, branches: int) -> list[Stage]:
    """The copy of one map [B, C, H, W], which is the baseline, and `timm_sk.ops` on branches beside its reference."""
    sets = [[place.draw(*shape, seed=10 * index + m) for m in range(branches)] for index in range(INPUT_SETS)]
    logits = [place.draw(shape[0], branches, shape[1], seed=10 * index + 8) for index in range(INPUT_SETS)]
    grads = [place.draw(*shape, seed=10 * index + 9) for index in range(INPUT_SETS)]
    by = runs_on(sets[0])

    def backward(run: Callable[..., Tensor]) -> Callable[[int], Results]:
        recorded = [_recorded(run, maps, logit) for maps, logit in zip(sets, logits, strict=True)]

        def step(index: int) -> Results:
            output, inputs = recorded[index % INPUT_SETS]
            return torch.autograd.grad(output, inputs, grads[index % INPUT_SETS], retain_graph=True)

        return step

    def exact_backward() -> Results:
        output, inputs = _recorded(reference.select, [x.float() for x in sets[0]], logits[0].float())
        return torch.autograd.grad(output, inputs, grads[0].float())

    def exact(run: Callable[..., Tensor], *operands: Tensor) -> Results:
        return (run([x.float() for x in sets[0]], *(operand.float() for operand in operands)),)

    maps = bytes_of(sets[0])
    selected, descriptor, scores = bytes_of(grads[:1]), bytes_of([grads[0][:, :, 0, 0]]), bytes_of([logits[0]])
    return [
        copy(grads),
        Stage(
            name='fuse',
            implementation=by,
            least_bytes=maps + descriptor,
            step=_forward(ops.fuse, sets),
            reference=_forward(reference.fuse, sets),
            expected=lambda: exact(reference.fuse),
        ),
        Stage(
            name='select',
            implementation=by,
            least_bytes=maps + scores + selected,
            step=_forward(ops.select, sets, logits),
            reference=_forward(reference.select, sets, logits),
            expected=lambda: exact(reference.select, logits[0]),
        ),
        Stage(
            name='select_backward',
            implementation=by,
            least_bytes=2 * (maps + scores) + selected,
            step=backward(ops.select),
            reference=backward(reference.select),
            expected=exact_backward,
        ),
    ]


def copy(maps: Sequence[Tensor]) -> Stage:
    """The copy of a map."""
    run = torch.empty_like(maps[0]).copy_
    return Stage(name='copy', implementation='torch', least_bytes=2 * bytes_of(maps[:1]), step=_forward(run, maps))


def convolutions(
    shape: Sequence[int], place: Place, *, out_channels: int, kernel_size: int, groups: int
) -> list[Stage]:
    """A copy, and a convolution alone, with bias and ReLU, and with a shortcut too: as passes of their own or cuDNN's.

    Its input is [B, C, H, W], and its output as high and wide: the kernel size is odd.
    """
    batch, channels, height, width = shape
    maps = [place.draw(*shape, seed=index) for index in range(INPUT_SETS)]
    weight = place.draw(out_channels, channels // groups, kernel_size, kernel_size, seed=3)
    bias, shortcut = place.draw(out_channels, seed=4), place.draw(batch, out_channels, height, width, seed=5)
    settings = ([1, 1], [kernel_size // 2] * 2, [1, 1], groups)
    wide = weight.float(), bias.float()

    def expected(*, biased: bool = True, added: bool = False) -> Callable[[], Results]:
        def run() -> Results:
            output = F.conv2d(maps[0].float(), wide[0], wide[1] if biased else None, *settings)
            output = output + shortcut.float() if added else output
            return (output.relu() if biased else output,)

        return run

    def relu(x: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, *settings).relu_()

    def add_relu(x: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, *settings).add_(shortcut).relu_()

    def cudnn_relu(x: Tensor) -> Tensor:
        return torch.ops.aten.cudnn_convolution_relu(x, weight, bias, *settings)

    def cudnn_add_relu(x: Tensor) -> Tensor:
        return torch.ops.aten.cudnn_convolution_add_relu(x, weight, shortcut, 1.0, bias, *settings)

    least = bytes_of([maps[0], weight, shortcut])  # the shortcut is as large as the output
    small, large = bytes_of([bias]), bytes_of([bias, shortcut])
    kind = f'{channels}-{out_channels} {kernel_size}x{kernel_size}'
    candidates: list[tuple[str, str, Callable[[Tensor], Tensor], int, Callable[[], Results]]] = [
        ('', 'torch', lambda x: F.conv2d(x, weight, None, *settings), 0, expected(biased=False)),
        (' relu', 'torch', relu, small, expected()),
        (' relu', 'cudnn', cudnn_relu, small, expected()),
        (' add relu', 'torch', add_relu, large, expected(added=True)),
        (' add relu', 'cudnn', cudnn_add_relu, large, expected(added=True)),
    ]
    return [copy(maps)] + [
        Stage(name=kind + name, implementation=by, least_bytes=least + more, step=_forward(run, maps), expected=wanted)
        for name, by, run, more, wanted in candidates
    ]


def _forward(run: Callable[..., Tensor | list[Tensor]], *operands: Sequence[object]) -> Callable[[int], Results]:
    """A step without gradients; operands are given as their input sets."""

    def step(index: int) -> Results:
        with torch.no_grad():
            result = run(*(operand[index % INPUT_SETS] for operand in operands))
        return (result,) if isinstance(result, Tensor) else tuple(result)

    return step


def _recorded(run: Callable[..., Tensor], maps: Sequence[Tensor], logits: Tensor) -> tuple[Tensor, list[Tensor]]:
    """A selection with its graph, and the leaves whose gradients it can give."""
    leaves = [x.detach().requires_grad_() for x in maps]
    scores = logits.detach().requires_grad_()
    return run(leaves, scores), [*leaves, scores]


def unit_stages(shape: Sequence[int], place: Place, *, branches: int, groups: int) -> list[Stage]:
    """A deployed selective-kernel unit [B, C, H, W] -> [B, C, H, W]: its stages, each by itself, and the whole.

    The kernel sizes of its branches are 3, 5, and so on. Each stage's input is what the stage before it gives. The
    whole unit's least traffic is the sum of the stages'.
    """
    plain = _random_unit(shape[1], branches, groups)
    unit = _deployed(plain, shape, place)
    attention: Any = unit.attn
    images = [place.draw(*shape, seed=index) for index in range(INPUT_SETS)]
    with torch.no_grad():
        maps = [unit.split(x) for x in images]
        fused = [ops.fuse(branch_maps) for branch_maps in maps]
        logits = [attention(descriptor) for descriptor in fused]

    def expected() -> Results:
        # weights that were rounded, arithmetic that is not
        exact: Any = deepcopy(plain).to(place.dtype).float().to(place.device)
        with torch.no_grad():
            branch_maps = list(exact.split(images[0].float()))
            return (reference.select(branch_maps, exact.attn(reference.fuse(branch_maps))),)

    whole, branch_bytes = bytes_of(images[:1]), bytes_of(maps[0])
    small, scores = bytes_of(fused[:1]), bytes_of(logits[:1])
    by = runs_on(maps[0])
    steps = {
        'unit_split': (whole + branch_bytes + bytes_of(unit.paths.parameters()), _forward(unit.split, images)),
        'unit_fuse': (branch_bytes + small, _forward(ops.fuse, maps)),
        'unit_mlp': (small + bytes_of(attention.parameters()) + scores, _forward(attention, fused)),
        'unit_select': (branch_bytes + scores + whole, _forward(ops.select, maps, logits)),
    }
    stages = [
        Stage(name=name, implementation=by, least_bytes=moved, step=step) for name, (moved, step) in steps.items()
    ]
    least = sum(stage.least_bytes for stage in stages)
    return [
        *stages,
        Stage(name='unit', implementation=by, least_bytes=least, step=_forward(unit, images), expected=expected),
    ]


def _random_unit(channels: int, branches: int, groups: int) -> SelectiveKernel:
    """A unit in eval mode whose norms are no identities."""
    sizes = [3 + 2 * m for m in range(branches)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unit = SelectiveKernel(channels, channels, sizes, groups=groups, split_input=False, rd_divisor=32).eval()
        for name, tensor in unit.state_dict().items():
            if name.endswith(('bn.weight', 'running_var')):
                nn.init.uniform_(tensor, 0.5, 1.5)
            elif name.endswith(('bn.bias', 'running_mean')):
                nn.init.normal_(tensor, std=0.1)
    return unit


def _deployed(unit: SelectiveKernel, shape: Sequence[int], place: Place) -> Any:
    """The unit as `deploy` leaves it in a net: norms folded, groups merged where that is faster, not compiled."""
    deployed = deploy(
        nn.Sequential(deepcopy(unit).to(place.device)).eval(),
        input_size=shape[1:],
        batch_size=shape[0],
        dtype=place.dtype,
        channels_last=place.memory_format == torch.channels_last,
        compile=False,
        remember=False,
    )
    return deployed.get_submodule('model.0')
