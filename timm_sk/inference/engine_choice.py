"""`deploy(engine=...)`: a model for an inference engine, and the fastest of the engines that are installed."""

import copy
import hashlib
import importlib.metadata
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .autotune import AutotuneCache, device_name, measure, pick_fastest
from .engines import EngineModel, installed_engines, require_engine
from .graph_export import compare, describe, write_onnx
from .graph_form import graph_form


def deploy_for_engine(model: nn.Module, shape: Sequence[int], engine: str) -> EngineModel:
    """Export a model in memory, and load it into an engine.

    Args:
        model: Model in eval mode.
        shape: B, C, H and W of the input that it is compiled for at once; other shapes are compiled when they are seen.
        engine: 'onnxruntime' or 'openvino'.

    Raises:
        ValueError: If the engine is not installed or cannot run the model, or its outputs differ.
    """
    require_engine(engine)
    x = torch.full((max(2, shape[0]), *shape[1:]), 0.5)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'model.onnx')
        try:
            write_onnx(graph_form(model), x, path, dynamic_size=True, metadata=describe(model, shape))
        except ValueError:  # an operation that needs a fixed size
            write_onnx(graph_form(model), x, path, metadata=describe(model, shape))
        found = EngineModel(path.read_bytes(), engine)
    noise = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0))
    compare(found, copy.deepcopy(model).cpu().float(), noise)
    return found


def pick_engine(model: nn.Module, shape: Sequence[int], deploy_torch: Callable[[], Any], *, remember: bool) -> Any:
    """Deploy a model in the fastest of torch and the installed engines, measured for one shape of input.

    Args:
        model: Model in eval mode on the CPU, in float32.
        shape: B, C, H and W of the input.
        deploy_torch: Deploys it in torch.
        remember: Keep the result in the local store, and use an earlier one.
    """
    engines = installed_engines()
    builders: dict[str, Callable[[], Any]] = {'torch': deploy_torch}
    builders |= {engine: partial(deploy_for_engine, model, shape, engine) for engine in engines}
    built: dict[str, nn.Module] = {}

    def find_fastest() -> str:
        for name, build in builders.items():
            try:
                built[name] = build()
            except ValueError:  # this engine cannot run the model
                if name == 'torch':
                    raise
        x = torch.randn(tuple(shape))
        times = measure({name: _call(deployed, x) for name, deployed in built.items()}, torch.device('cpu'))
        return pick_fastest(times, 'torch')

    cache = AutotuneCache(remember=remember)
    fastest = cache.fastest(_key(model, shape, engines), list(builders), find_fastest)
    cache.save()
    return built[fastest] if fastest in built else builders[fastest]()


def _call(deployed: nn.Module, x: Tensor) -> Callable[[], Any]:
    return lambda: deployed(x)


def _key(model: nn.Module, shape: Sequence[int], engines: Sequence[str]) -> str:
    """Everything that the fastest engine depends on."""
    versions = [f'{name} {importlib.metadata.version(name)}' for name in ('torch', *engines)]
    structure = hashlib.sha256(repr(model).encode()).hexdigest()[:16]
    processor, threads = device_name(torch.device('cpu')), torch.get_num_threads()
    return f'engine: {processor}, {", ".join(versions)}, {threads} threads, {list(shape)}, {structure}'
