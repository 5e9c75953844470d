"""Deployment: a trained model optimized for inference on the device that it is on."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.folded_conv import FoldedConv
from ..models.inputs import image_shape
from .conv_inputs import conv_inputs
from .cuda_graph import Forward, GraphedForward
from .engines import ConstantModel, EngineModel, copy_attributes
from .fold import fold_model, wrap_convolutions
from .tune_branches import replace_where_faster
from .tune_groups import merge_where_faster
from .warmup import cudnn_benchmark, warm_up

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
DEVICES = ('cpu', 'cuda', 'mps', 'xpu')

_NO_LIMIT = dict(cache_size_limit=1024, accumulated_cache_size_limit=1024)


def deploy(
    model: nn.Module,
    *,
    input_size: Sequence[int] | None = None,
    batch_size: int = 1,
    dtype: torch.dtype | None = None,
    channels_last: bool = True,
    compile: bool = True,
    cuda_graph: bool = False,
    merge_groups: bool = True,
    join_branches: bool = True,
    remember: bool = True,
    engine: str = 'torch',
) -> 'Deployed | EngineModel':
    """Optimize a trained model for inference on the device that it is on.

    Norms, also those of the stem, are folded into the convolutions; weights are laid out for the device; where it is
    measured to be faster, the groups of grouped convolutions are merged, and one kernel computes both branches of an SK
    unit; `torch.compile` compiles the result. Outputs are the model's up to rounding.

    Args:
        model: Model in eval mode, which is not changed. Any module can be deployed; norms are folded in our units and
            the trunks around them.
        input_size: Channels, height and width of an image; None for the size of the model's checkpoint.
        batch_size: Images in a batch. Batches of another shape give the same values, without the compiled form.
        dtype: float32, bfloat16, float16 or float64; None for the model's own.
        channels_last: Use that memory format.
        compile: Use `torch.compile`, which can take a minute here, and needs a C++ compiler on a CPU.
        cuda_graph: Launch the forward pass, compiled or not, as one CUDA graph: for small batches, whose kernels take
            less time than their launches. The graph keeps the memory of a forward pass. On CUDA only.
        merge_groups: Measure for which grouped convolutions fewer, wider groups are faster.
        join_branches: Measure for which SK units with two branches one kernel for both is faster; on CUDA with Triton,
            for `channels_last` only.
        remember: Keep what is measured in the local store, and use what was measured before.
        engine: 'torch'; 'onnxruntime' or 'openvino', for float32 on the CPU; or 'auto' for the fastest of those that
            are installed, measured for this shape of input.

    Returns:
        The deployed model, warmed up: a `Deployed`, or an `EngineModel` for another engine than torch.

    Raises:
        ValueError: If the model is in train mode, on an unsupported device or on several, or already deployed, scripted
            or compiled; if an argument is invalid; if the model does not take images of that size; if it cannot be
            compiled or captured.
    """
    device = require_deployable(model)
    shape = image_shape(model, batch_size, input_size)
    own = next((parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), torch.float32)
    dtype = own if dtype is None else dtype
    if dtype not in DTYPES or (device.type == 'mps' and dtype == torch.float64):
        known = ', '.join(str(known).removeprefix('torch.') for known in DTYPES)
        raise ValueError(f'dtype must be one of {known}, got {dtype} on {device}: convert to one of them.')
    if cuda_graph and device.type != 'cuda':
        raise ValueError(f'CUDA graphs need a model on cuda, got one on {device}: pass cuda_graph=False.')
    if engine == 'auto' and (device.type != 'cpu' or dtype != torch.float32):
        engine = 'torch'  # the only one for these
    if engine != 'torch':
        from .engine_choice import deploy_for_engine, pick_engine  # which imports this module

        if device.type != 'cpu' or dtype != torch.float32:
            raise ValueError(f'{engine} runs on the CPU in float32, got {dtype} on {device}: pass engine="torch".')
        if engine != 'auto':
            return deploy_for_engine(model, shape, engine)
        options: dict[str, Any] = dict(channels_last=channels_last, compile=compile, merge_groups=merge_groups)
        in_torch = partial(deploy, model, input_size=shape[1:], batch_size=batch_size, remember=remember, **options)
        return pick_engine(model, shape, in_torch, options=options, remember=remember)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    folded = copy.deepcopy(model).requires_grad_(False)
    fold_model(folded)
    wrap_convolutions(folded)
    folded.to(dtype).to(memory_format=memory_format)
    deployed = Deployed(folded, shape, memory_format=memory_format)
    x = torch.full(shape, 0.5, dtype=dtype, device=device)
    with cudnn_benchmark():  # from the first call on, as cuDNN keeps the algorithm of each shape
        inputs = conv_inputs([conv for conv in deployed.modules() if isinstance(conv, FoldedConv)], deployed, x)
        if merge_groups:
            merge_where_faster(inputs, remember=remember)
        if join_branches and channels_last:
            replace_where_faster(deployed, inputs, remember=remember)
        if compile:
            deployed.compile_forward()
        elif channels_last:
            for conv, seen in inputs.items():
                conv.pack(seen.shape)
        if cuda_graph:
            deployed.capture_forward()
    warm_up(deployed, x)
    return deployed


class Deployed(ConstantModel):
    """A folded model with a compiled or captured forward pass for one shape of input.

    It computes without gradients and without autocast. Input is converted to its dtype and memory format. It stays on
    its device and in its dtype, and its weights cannot be replaced: change the model, then deploy it again. A copy of
    it, by `copy` or `pickle`, is neither compiled nor captured.

    Args:
        model: Folded model.
        input_shape: B, C, H and W of the inputs to optimize for.
        memory_format: Memory format of weights and inputs.

    Attributes:
        engine: 'torch'.
    """

    def __init__(self, model: nn.Module, input_shape: Sequence[int], *, memory_format: torch.memory_format) -> None:
        super().__init__()
        self.model: Any = model
        self.engine = 'torch'
        self.input_shape = list(input_shape)
        self.channels_last = memory_format == torch.channels_last  # a memory format cannot be pickled by old protocols
        weights = next(model.parameters(), torch.empty(0))
        self.dtype = weights.dtype
        self.device = weights.device
        copy_attributes(model, self)
        self._compiled: Forward | None = None
        self._graphed: GraphedForward | None = None
        self.refusal = (
            f'A deployed model stays in eval mode, on its device and in {self.dtype}, with its weights: train or '
            'convert the model that it was made from, or load them into it, then deploy it again.'
        )

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def compile_forward(self) -> None:
        """Compile the forward pass for the shape of input.

        Raises:
            ValueError: If torch.compile fails.
        """
        from torch._dynamo import config as dynamo_config  # slow to import
        from torch._inductor import config

        # as constants, weights are laid out once, and additions and activations join the convolutions
        freezing = self.device.type == 'cpu'
        self._compiled = torch.compile(self.model.forward, dynamic=False, options={'freezing': freezing})
        try:
            # Dynamo reads freezing from the global config; all models of a class share its limit of versions
            with config.patch(freezing=freezing), dynamo_config.patch(_NO_LIMIT):
                self(self._blank())
        except Exception as error:  # of Dynamo, Inductor, the compiler
            self._compiled = None
            raise ValueError(
                f'torch.compile fails on this model or machine ({type(error).__name__}: {_first_line(error)}): a CPU '
                'needs a C++ compiler; or pass compile=False.'
            ) from error

    def capture_forward(self) -> None:
        """Capture the forward pass, compiled or not, for the shape of input in a CUDA graph.

        Raises:
            ValueError: If it cannot be captured.
        """
        try:
            self._graphed = GraphedForward(self._compiled or self.model, self._blank())
        except RuntimeError as error:
            raise ValueError(
                f'The forward pass cannot be captured in a CUDA graph ({_first_line(error)}): pass cuda_graph=False.'
            ) from error

    def forward(self, x: Tensor) -> Any:
        if self._graphed is not None and self._graphed.takes(x):
            return self._graphed(x)
        with self._context():
            x = self._converted(x)
            # a replica of `DataParallel` has the compiled pass of the device that it is a replica of
            if self._compiled is not None and list(x.shape) == self.input_shape and x.device == self.device:
                return self._compiled(x)
            return self.model(x)

    @contextmanager
    def _context(self) -> Iterator[None]:
        """Turn gradients and autocast off."""
        if torch.compiler.is_exporting():  # the weights need no gradients
            yield
            return
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            yield

    def save(self, path: str | Path) -> Path:
        """Write the model as a program of torch, which `timm_sk.load_deployed` loads without compiling it.

        Args:
            path: A file that ends in `.pt2`. A compiled model becomes a package of machine code for this processor.

        Raises:
            ValueError: If the model is not in float32 on the CPU, or for the reasons of `timm_sk.export`.
        """
        if self.device.type != 'cpu' or self.dtype != torch.float32:
            raise ValueError(f'Programs are for the CPU in float32, got {self.dtype} on {self.device}: deploy it so.')
        from .graph_export import export  # which imports this module

        return export(self, path, format='torch' if self._compiled is None else 'aoti', input_size=self.input_shape[1:])

    def forward_features(self, x: Tensor) -> Any:
        """The model's `forward_features`, not compiled."""
        with self._context():
            return self.model.forward_features(self._converted(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Any:
        """The model's `forward_head`, not compiled."""
        with self._context():
            return self.model.forward_head(self._converted(x), pre_logits=pre_logits)

    def _blank(self) -> Tensor:
        """An input of zeros."""
        return self._converted(torch.zeros(self.input_shape, dtype=self.dtype, device=self.device))

    def _converted(self, x: Tensor) -> Tensor:
        """The input as compiled code expects it: in one dtype and memory format, not an inference tensor."""
        if x.dim() == 4:
            x = x.to(dtype=self.dtype, memory_format=self.memory_format)
        made_in_inference_mode = not torch.compiler.is_compiling() and x.is_inference()
        return (x.clone() if made_in_inference_mode else x).detach()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {'_compiled': None, '_graphed': None}


def inner_model(model: nn.Module) -> nn.Module:
    """The folded model in a deployed one, whose units the compiled pass does not call; else the model itself."""
    return model.model if isinstance(model, Deployed) else model


def require_deployable(model: nn.Module) -> torch.device:
    """Check a model, and return its device."""
    if not isinstance(model, nn.Module):
        raise ValueError(f'Expected a torch.nn.Module, got {type(model).__name__}: build the model first.')
    if isinstance(model, Deployed | torch.jit.ScriptModule) or hasattr(model, '_orig_mod'):
        raise ValueError(f'Cannot deploy a {type(model).__name__}: pass the model that it was made from.')
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        raise ValueError(f'Cannot deploy in train mode, got train mode in "{training or "the model"}": call eval().')
    devices = sorted({str(tensor.device) for tensor in (*model.parameters(), *model.buffers())}) or ['cpu']
    if len(devices) > 1:
        raise ValueError(f'Expected a model on one device, got {", ".join(devices)}: move it to one.')
    device = torch.device(devices[0])
    if device.type not in DEVICES:
        raise ValueError(f'Expected a model on {", ".join(DEVICES)}, got {device}: move it there.')
    return device


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), '')
