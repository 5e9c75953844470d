"""Models that ONNX Runtime or OpenVINO executes on a CPU, with the interface of a deployed model."""

import importlib.util
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..optional_packages import require_package

ENGINES = {'onnxruntime': 'onnx', 'openvino': 'openvino'}  # package -> extra of timm_sk that installs it
MAX_COMPILED = 4  # shapes of input; each takes the memory of the packed weights
_ATTRIBUTES = ('num_classes', 'num_features', 'head_hidden_size', 'feature_info', 'pretrained_cfg', 'default_cfg')

Run = Callable[[NDArray[Any]], list[NDArray[np.float32]]]
M = TypeVar('M', bound='ConstantModel')
_COMPILING = threading.Lock()


def installed_engines() -> list[str]:
    """Names of the inference engines that are installed, beside torch."""
    return [name for name in ENGINES if importlib.util.find_spec(name) is not None]


def require_engine(name: str) -> None:
    """Check that an engine is known and installed.

    Raises:
        ValueError: If not, with the way to install it.
    """
    if name not in ENGINES:
        raise ValueError(f'Unknown engine "{name}": expected torch, {", ".join(ENGINES)} or auto.')
    require_package(name, ENGINES[name])


def default_engine(path: Path | None = None) -> str:
    """OpenVINO for its own format and where it is installed, otherwise ONNX Runtime."""
    is_ir = path is not None and path.suffix == '.xml'
    return 'openvino' if is_ir or 'openvino' in installed_engines() else 'onnxruntime'


def copy_attributes(model: nn.Module, deployed: nn.Module) -> None:
    """Give a deployed model what it has of the original one."""
    for name in _ATTRIBUTES:
        if hasattr(model, name):
            setattr(deployed, name, getattr(model, name))


class ConstantModel(nn.Module):
    """A model in eval mode that keeps its weights, device and dtype.

    Attributes:
        device: Device of the weights.
        dtype: Dtype of the weights.
        refusal: Message of the ValueError that `train`, `load_state_dict`, and other devices and dtypes raise.
    """

    device: torch.device
    dtype: torch.dtype
    refusal: str

    def __init__(self) -> None:
        super().__init__()
        self.training = False

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError(self.refusal)

    load_state_dict = _apply = _refuse

    def train(self: M, mode: bool = True) -> M:
        """Do nothing in eval mode; raise ValueError if `mode` is True."""
        return self._refuse() if mode else self

    def to(self: M, *args: Any, **kwargs: Any) -> M:
        """Return the model if it has the device and dtype already, else raise ValueError."""
        # what nn.Module.to calls; torch has no public form
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        devices = (None, self.device, torch.device(self.device.type))
        return self if dtype in (None, self.dtype) and device in devices else self._refuse()

    def cpu(self: M) -> M:
        return self.to('cpu')

    def float(self: M) -> M:
        return self.to(torch.float32)


class FrozenModel(ConstantModel):
    """An exported network: it infers on the CPU in float32, and has neither `forward_features` nor `forward_head`.

    Input [B, C, H, W] of any floating-point type, output in float32: a tensor, or a list of feature maps.

    Args:
        engine: Name of the engine.
        metadata: What `timm_sk.export` wrote into the model: architecture, input size, preprocessing, label names.

    Attributes:
        input_shape: B, C, H and W of the input that it was deployed for; B is 1 for a model from a file.
        num_classes: Number of classes, or None if that is not known.
        pretrained_cfg: Preprocessing and label names, as timm names them.
    """

    def __init__(self, engine: str, metadata: dict[str, Any]) -> None:
        super().__init__()
        self.engine = engine
        self.input_shape = [1, *metadata.get('input_size', ())]
        self.metadata = metadata
        self.num_classes = metadata.get('num_classes')
        self.in_chans = metadata.get('input_size', [3])[0]
        self.pretrained_cfg = metadata | metadata.get('preprocessing', {})
        self.device, self.dtype = torch.device('cpu'), torch.float32
        self.refusal = (
            f'{engine} runs the whole model in float32 on the CPU, with constant weights: use engine="torch", or '
            'change the original model (features_only=True for feature maps), and deploy or export it again.'
        )

    def run(self, x: Tensor) -> list[Tensor]:
        """The outputs for a contiguous float32 batch."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        if x.dim() != 4:
            raise ValueError(f'The input must be a batch of images [B, C, H, W], got {list(x.shape)}.')
        is_uint8 = bool(self.metadata.get('uint8_input'))
        if is_uint8 != (x.dtype == torch.uint8):
            raise ValueError(f'The input must be {"uint8" if is_uint8 else "floating-point"} images, got {x.dtype}.')
        outputs = self.run(x.detach().to('cpu', torch.uint8 if is_uint8 else torch.float32).contiguous())
        return outputs if self.metadata.get('features_only') else outputs[0]

    forward_features = forward_head = ConstantModel._refuse


class EngineModel(FrozenModel):
    """A network in ONNX format or OpenVINO's IR, executed by an inference engine.

    Each shape of input is compiled when it is first seen, for `torch.get_num_threads()` threads; the last few stay
    compiled. Any thread may call; OpenVINO computes one call of a shape at a time.

    Args:
        graph: A serialized ONNX model, or the path of an ONNX model or of an IR's `.xml`.
        engine: 'onnxruntime' or 'openvino'.

    Attributes:
        graph: The serialized model, or the absolute path of the file, which must stay.

    Raises:
        ValueError: If the engine is unknown or not installed, or cannot read the model.
    """

    def __init__(self, graph: bytes | Path, engine: str) -> None:
        require_engine(engine)
        super().__init__(engine, read_metadata(graph))
        self.graph = graph.resolve() if isinstance(graph, Path) else graph
        self._compiled: dict[tuple[int, ...], Run] = {}

    def run(self, x: Tensor) -> list[Tensor]:
        key = (*x.shape, torch.get_num_threads())
        compiled = self._compiled.get(key)
        if compiled is None:
            with _COMPILING:  # threads that ask for the same shape wait for one compilation
                compiled = self._compiled.get(key) or self._compile(x)
                while len(self._compiled) >= MAX_COMPILED:
                    del self._compiled[list(self._compiled)[0]]  # noqa: RUF015, other threads change it meanwhile
        self._compiled.pop(key, None)
        self._compiled[key] = compiled  # at the end: the most recently used
        return [torch.from_numpy(output) for output in _translate(compiled, x.numpy())]

    def _compile(self, x: Tensor) -> Run:
        compile_graph = {'onnxruntime': _onnxruntime, 'openvino': _openvino}[self.engine]
        spatial = x.shape[1:3] if x.dtype == torch.uint8 else x.shape[2:]
        dims = dict(zip(('batch', 'height', 'width'), (len(x), *spatial), strict=True))
        return _translate(compile_graph, self.graph, list(x.shape), dims, torch.get_num_threads())

    def save(self, path: str | Path) -> Path:
        """Write the model as ONNX (`.onnx`) or OpenVINO's IR (`.xml`), which `timm_sk.load_deployed` loads.

        Raises:
            ValueError: As `timm_sk.export`.
        """
        from .graph_export import export  # which imports this module

        return export(self, path)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {'_compiled': {}}


def _translate(call: Callable[..., Any], *args: Any) -> Any:
    """Call an engine."""
    try:
        return call(*args)
    except Exception as error:  # of classes of its own
        raise ValueError(f'The engine cannot run this model on this input: {root_reason(error)}') from error


def root_reason(error: BaseException) -> str:
    """The message of the error that an error was first raised for, in one line without colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = ' '.join(re.sub(r'\x1b\[[\d;]*m', '', str(error)).split())
    return f'{type(error).__name__}: {text[:300]}' if text else type(error).__name__


def read_metadata(graph: bytes | Path) -> dict[str, Any]:
    """The metadata that `timm_sk.export` wrote into a model; empty for a model of another origin.

    Raises:
        ValueError: If this is not a readable model, or the metadata is damaged.
    """
    is_ir = isinstance(graph, Path) and graph.suffix == '.xml'
    require_package(*(('openvino', 'openvino') if is_ir else ('onnx', 'onnx')))
    try:
        if is_ir:
            import openvino

            model = openvino.Core().read_model(graph)
            text = model.get_rt_info(['timm_sk']).astype(str) if model.has_rt_info(['timm_sk']) else '{}'
        else:
            import onnx

            loaded = onnx.load_model_from_string(graph if isinstance(graph, bytes) else graph.read_bytes())
            text = next((entry.value for entry in loaded.metadata_props if entry.key == 'timm_sk'), '{}')
        return dict(json.loads(text))
    except Exception as error:  # of protobuf, json, OpenVINO
        raise ValueError(f'Not a readable model: {root_reason(error)}') from error


def _onnxruntime(graph: bytes | Path, shape: Sequence[int], dims: Mapping[str, int], threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')  # idle threads would slow other models
    for name, size in dims.items():
        options.add_free_dimension_override_by_name(name, size)
    source = graph if isinstance(graph, bytes) else str(graph)
    session = onnxruntime.InferenceSession(source, options, providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})


def _openvino(graph: bytes | Path, shape: Sequence[int], dims: Mapping[str, int], threads: int) -> Run:
    import openvino

    core = openvino.Core()
    if isinstance(graph, bytes):
        model = core.read_model(graph, openvino.Tensor(np.empty(0, np.uint8)))
    else:
        model = core.read_model(graph)
    model.reshape(list(shape))
    settings = {'INFERENCE_NUM_THREADS': threads, 'PERFORMANCE_HINT': 'LATENCY', 'INFERENCE_PRECISION_HINT': 'f32'}
    request = core.compile_model(model, 'CPU', settings).create_infer_request()
    lock = threading.Lock()  # a request takes one call at a time

    def run(x: NDArray[Any]) -> list[NDArray[np.float32]]:
        with lock:
            results = request.infer(x, share_inputs=True)
            return [results[index] for index in range(len(results))]  # copies, which later calls do not overwrite

    return run
