"""`deploy(engine=...)`: a model for an inference engine, and the fastest of the engines that are installed."""

import copy
import hashlib
import importlib
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .autotune import AutotuneCache, device_name, measure, pick_fastest
from .engines import EngineModel, copy_attributes, installed_engines, require_engine
from .graph_export import compare, describe, write_onnx_of_any_size

_logger = logging.getLogger(__name__)


def deploy_for_engine(model: nn.Module, shape: Sequence[int], engine: str) -> EngineModel:
    """Export a model in memory, load it into an engine, and compile it for an input of the shape B, C, H, W.

    Raises:
        ValueError: If the engine is not installed or cannot run the model, or its outputs differ.
    """
    require_engine(engine)
    with tempfile.TemporaryDirectory() as folder:
        x = torch.full((max(2, shape[0]), *shape[1:]), 0.5)
        path = write_onnx_of_any_size(model, x, Path(folder, 'model.onnx'), describe(model, shape))
        found = EngineModel(path.read_bytes(), engine)
    found.input_shape = list(shape)
    copy_attributes(model, found)
    noise = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0))
    compare(found, copy.deepcopy(model).cpu().float(), noise)
    return found


def pick_engine(
    model: nn.Module,
    shape: Sequence[int],
    deploy_torch: Callable[[], Any],
    *,
    options: Mapping[str, Any],
    remember: bool,
) -> Any:
    """Deploy a float32 model on the CPU in the fastest of torch and the installed engines, measured for one shape.

    `options` are those of `deploy_torch`, on which its time depends.
    """
    engines = installed_engines()
    builders: dict[str, Callable[[], Any]] = {'torch': deploy_torch}
    builders |= {engine: partial(deploy_for_engine, model, shape, engine) for engine in engines}
    built: dict[str, nn.Module] = {}

    def find_fastest() -> str:
        for name, build in builders.items():
            try:
                built[name] = build()
            except ValueError as error:
                if name == 'torch':
                    raise
                _logger.warning('deploy: %s is left out: %s', name, error)
        x = torch.randn(tuple(shape))
        times = measure({name: partial(deployed, x) for name, deployed in built.items()}, torch.device('cpu'))
        return pick_fastest(times, 'torch')

    cache = AutotuneCache(remember=remember)
    fastest = cache.fastest(_key(model, shape, engines, options), list(builders), find_fastest)
    if len(built) == len(builders):
        cache.save()  # an engine that was left out may work after an installation
    if fastest not in built:
        try:
            return builders[fastest]()
        except ValueError:  # of these weights
            fastest = find_fastest()
    return built[fastest]


def _key(model: nn.Module, shape: Sequence[int], engines: Sequence[str], options: Mapping[str, Any]) -> str:
    """Everything that the fastest engine depends on."""
    versions = [f'{name} {importlib.import_module(name).__version__}' for name in ('torch', *engines)]
    structure = hashlib.sha256(repr(model).encode()).hexdigest()[:16]
    processor, threads = device_name(torch.device('cpu')), torch.get_num_threads()
    return f'engine: {processor}, {", ".join(versions)}, {threads} threads, {list(shape)}, {options}, {structure}'
