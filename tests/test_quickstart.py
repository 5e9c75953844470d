"""The quickstart notebook runs from top to bottom, without a network, and prints what is stored in it."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from subprocesses import ROOT

NUMBER = r'[+-]?\d+\.\d+'


def printed(notebook: dict) -> list[str]:
    """What each cell prints to stdout."""
    cells = [cell for cell in notebook['cells'] if cell['cell_type'] == 'code']
    return [''.join(output['text'] for output in cell['outputs'] if output.get('name') == 'stdout') for cell in cells]


@pytest.mark.deep
def test_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip('nbformat', reason='the extra docs')
    nbclient = pytest.importorskip('nbclient', reason='the extra docs')
    monkeypatch.setenv('PYTHONPATH', str(ROOT), prepend=os.pathsep)
    monkeypatch.setenv('TMPDIR', str(tmp_path))
    stored = nbformat.read(ROOT / 'docs' / 'quickstart.ipynb', as_version=4)
    fresh = nbformat.from_dict({**stored, 'cells': [nbformat.from_dict({**cell}) for cell in stored.cells]})
    nbclient.NotebookClient(fresh, timeout=900, resources=dict(metadata=dict(path=str(tmp_path)))).execute()

    before, after = printed(stored), printed(fresh)
    assert [re.sub(NUMBER, '#', text) for text in after] == [re.sub(NUMBER, '#', text) for text in before]
    numbers = [[float(number) for number in re.findall(NUMBER, ''.join(texts))] for texts in (before, after)]
    assert len(numbers[0]) > 20
    np.testing.assert_allclose(*numbers, atol=0.011)  # rounded to two digits
    kinds = [output.output_type for cell in fresh.cells if cell.cell_type == 'code' for output in cell.outputs]
    assert 'execute_result' in kinds  # the image
