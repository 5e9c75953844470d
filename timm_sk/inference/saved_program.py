"""Programs of torch in files: `torch.export`'s and AOTInductor's packages, which hold code.

`torch.export.load` unpickles, and an AOTInductor package is a shared library: loading runs what the file says. So a
file is loaded only if the caller trusts it, and only after the header beside it (`PATH.json`) has been checked, before
torch sees the file.
"""

import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..atomic_io import read_json, write_json
from ..pretrained.verify import sha256_of
from .autotune import device_name, processor
from .engines import FrozenModel, root_reason

FORMAT_VERSION = 1
_FIELDS = dict(sha256=str, torch=str, aoti=bool, processor=str, instructions=list, metadata=dict)  # of the header


class ProgramModel(FrozenModel):
    """A program of torch that was loaded from a file."""

    def __init__(self, path: Path, call: Any, metadata: dict[str, Any]) -> None:
        super().__init__('torch program', metadata)
        self.path = path
        self.call = call

    def run(self, x: Tensor) -> list[Tensor]:
        try:
            with torch.no_grad():
                outputs = self.call(x)
        except Exception as error:  # of the guards of the program
            raise ValueError(f'{self.path.name} does not take this input: {root_reason(error)}') from error
        return list(outputs) if isinstance(outputs, list | tuple) else [outputs]

    def __reduce__(self) -> Any:
        return load_program, (self.path, True)


def dynamic_dims(x: Tensor, dynamic_size: bool) -> dict[int, Any]:
    """The dynamic axes of an input, [B, C, H, W] or uint8 [B, H, W, C], as `torch.export` takes them."""
    height = 1 if x.dtype == torch.uint8 else 2
    names = {0: 'batch', height: 'height', height + 1: 'width'} if dynamic_size else {0: 'batch'}
    return {axis: torch.export.Dim(name, min=1) for axis, name in names.items()}


def header_path(path: Path) -> Path:
    """The header of a program."""
    return path.with_name(f'{path.name}.json')


def save_program(
    graph: nn.Module, x: Tensor, path: Path, *, aoti: bool, dynamic_size: bool, metadata: dict[str, Any]
) -> None:
    """Write a model as a program of torch with a dynamic batch, and its header with the metadata.

    The example input has at least two images. With `aoti` the program is compiled for this processor with AOTInductor,
    which needs a C++ compiler.

    Raises:
        ValueError: If torch cannot export or compile the model.
    """
    try:
        program = torch.export.export(
            graph,
            (x,),
            dynamic_shapes=(dynamic_dims(x, dynamic_size),),
            prefer_deferred_runtime_asserts_over_guards=True,  # otherwise a guard of maps of one pixel is an error
        )
        if aoti:
            from torch._inductor import aoti_compile_and_package  # public in torch's documents, not in its names

            aoti_compile_and_package(program, package_path=str(path), inductor_configs={'freezing': True})
        else:
            torch.export.save(program, path)
    except Exception as error:  # of Dynamo, Inductor, the compiler
        raise ValueError(f'torch cannot export this model: {root_reason(error)}') from error
    header = {
        'sha256': sha256_of(path),
        'aoti': aoti,
        'torch': torch.__version__,
        'processor': _processor() if aoti else 'any',
        'instructions': _instructions() if aoti else [],
        'metadata': metadata,
    }
    write_json(header_path(path), header, version=FORMAT_VERSION)


def load_program(path: str | Path, trusted: bool = False) -> ProgramModel:
    """Load a program that `timm_sk.export` wrote, with its header beside it; loading runs code that it holds.

    Raises:
        ValueError: If it is not trusted, missing, damaged, without a header, or made for another version of torch or
            processor.
    """
    path = Path(path)
    if not trusted:
        raise ValueError(
            f'{path} holds code, which loading runs: pass trusted=True if you trust its source, or use ONNX.'
        )
    header = _read_header(path)
    if header['sha256'] != sha256_of(path):
        raise ValueError(f'{path} is damaged or was replaced: its sha256 is not the one in {header_path(path).name}.')
    if header['torch'] != torch.__version__:
        raise ValueError(f'{path} was made by torch {header["torch"]}, this is {torch.__version__}: export it again.')
    if header['aoti'] and header['processor'].split(':')[0] != _processor().split(':')[0]:
        raise ValueError(f'{path} was compiled for {header["processor"]}, this is {_processor()}: export it again.')
    missing = sorted(set(header['instructions']) - set(_instructions()))
    if missing:
        raise ValueError(f'{path} was compiled for {header["processor"]}; this processor lacks {", ".join(missing)}.')
    if header['aoti']:
        from torch._inductor import aoti_load_package

        call: Any = aoti_load_package(str(path))
    else:
        call = torch.export.load(path).module()
    return ProgramModel(path, call, header['metadata'])


def _read_header(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f'{path}: no such file.')
    try:
        header = read_json(header_path(path), version=FORMAT_VERSION)
        if any(not isinstance(header.get(name), kind) for name, kind in _FIELDS.items()):
            raise ValueError('it lacks fields')
    except (OSError, ValueError) as error:
        raise ValueError(
            f'{header_path(path)} is not a header of this version of timm_sk ({error}): export the model again.'
        ) from error
    return header


def _processor() -> str:
    return f'{platform.system()} {platform.machine()}: {device_name(torch.device("cpu"))}'


def _instructions() -> list[str]:
    return sorted(flag for flag in processor()[1] if flag.startswith(('avx', 'amx', 'fma', 'asimd', 'sve')))
