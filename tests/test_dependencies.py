"""What is imported is declared, and what is declared is imported."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from subprocesses import ROOT

tomllib = pytest.importorskip('tomllib', reason='Python 3.11')

DISTRIBUTIONS = {
    'PIL': 'pillow',
    'yaml': 'pyyaml',
    'google_crc32c': 'google-crc32c',
    'huggingface-hub': 'huggingface_hub',
}
# Extras of the commands; the others are for whoever works on the project.
EXTRAS = ('convert', 'bench', 'explain', 'finetune', 'data', 'tensorboard', 'demo', 'onnx', 'openvino')
BROUGHT = {
    'triton',  # by torch, where it has one
    'starlette',  # by gradio
}
INDIRECT = {'tensorboard', 'webdataset', 'datasets', 'onnxscript'}  # imported by torch and timm when they are used


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


def test_dependencies_are_declared():
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    listed = [*project['dependencies'], *(name for extra in EXTRAS for name in project['optional-dependencies'][extra])]
    declared = {re.match(r'[\w.-]+', name)[0] for name in listed}
    names = {name.partition('.')[0] for file in (ROOT / 'timm_sk').rglob('*.py') for name in imported(file)}
    used = {DISTRIBUTIONS.get(name, name) for name in names - sys.stdlib_module_names - {'timm_sk'}}
    assert used - declared == BROUGHT
    assert declared - used - {'timm_sk'} == INDIRECT  # an extra may name another one
