"""Hostile files are refused quickly, with the reason, without running anything and without taking memory."""

import json
import os
import pickle
import re
import time

import pytest
from checkpoint_files import GIB, SAMPLES, described, safetensors_bytes
from hostile_files import hostile_files
from hostile_torch import running
from subprocesses import run_python

from timm_sk.errors import UnreadableCheckpointError
from timm_sk.pretrained.readers import read_checkpoint

ROOM = 160 << 20  # what reading may take beyond a file's size; see the limits in stream, torch_pickle and protobuf
NAMES = list(hostile_files('target'))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('hostile')


@pytest.fixture(scope='module')
def cases(folder):
    return hostile_files(str(folder / 'made-by-a-pickle'))


@pytest.mark.parametrize('name', NAMES)
def test_hostile_file(name, cases, folder):
    content, reason = cases[name]
    path = folder / 'checkpoint.pth'
    path.write_bytes(content)
    begin = time.process_time()
    with pytest.raises(UnreadableCheckpointError, match=reason) as caught:
        read_checkpoint(path)
    assert time.process_time() - begin < 5
    assert str(caught.value).startswith(f'{path} cannot be read as a checkpoint: ')
    assert len(str(caught.value)) < len(str(path)) + 500
    assert [entry.name for entry in folder.iterdir()] == ['checkpoint.pth']


def test_payloads_run_in_pickle(tmp_path):
    """The pickles above are live: Python's own unpickler makes the folder."""
    pickle.loads(running(str(tmp_path / 'made'))['pickle'][0])
    assert (tmp_path / 'made').is_dir()


CHILD = """
import json, resource, sys
from pathlib import Path
import timm_sk
from timm_sk.errors import UnreadableCheckpointError
from timm_sk.pretrained.readers import read_checkpoint

def status(key):
    lines = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())
    return int(lines[key].split()[0]) << 10

room, folder, samples = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
for sample in samples.glob('*.*[st]'):  # imports that the first file causes
    read_checkpoint(sample)
outcomes, address_space = {}, status('VmSize')
for path in sorted(folder.iterdir()):
    limit = address_space + room + 2 * path.stat().st_size
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    Path('/proc/self/clear_refs').write_text('5')  # the peak starts again from what is resident
    before = status('VmRSS')
    try:
        outcome = f'read {len(read_checkpoint(path))}'
    except UnreadableCheckpointError as error:
        outcome = str(error)
    outcomes[path.name] = outcome, status('VmHWM') - before
print(json.dumps(outcomes))
"""


@pytest.mark.deep
@pytest.mark.skipif(not os.path.exists('/proc/self/clear_refs'), reason='measures memory as Linux tells it')
def test_memory_of_hostile_files(cases, tmp_path, record_property):
    """With room for 160 MiB and twice the file in the address space, every refusal is for the file's own reason."""
    folder = tmp_path / 'files'
    folder.mkdir()
    for index, (content, _) in enumerate(cases.values()):
        (folder / f'{index:03}').write_bytes(content)
    done = run_python('-c', CHILD, str(ROOM), str(folder), str(SAMPLES))
    assert not done.returncode, done.stderr
    outcomes = json.loads(done.stdout)
    growths = {}
    for index, (name, (content, reason)) in enumerate(cases.items()):
        outcome, growths[name] = outcomes[f'{index:03}']
        assert re.search(reason, outcome), name
        assert growths[name] < ROOM + 2 * len(content), name
    worst = max(growths, key=growths.__getitem__)
    record_property('hostile_files', len(cases))
    record_property('worst_peak', f'{growths[worst] / 2**20:.0f} MiB: {worst}, {len(cases[worst][0])} bytes')


@pytest.mark.deep
@pytest.mark.skipif(not os.path.exists('/proc/self/statm'), reason='limits memory as Linux does')
def test_valid_file_larger_than_memory(tmp_path):
    path = tmp_path / 'x.safetensors'
    with path.open('wb') as file:
        file.write(safetensors_bytes({'a': described([GIB // 4], 0, GIB)}))
        file.truncate(file.tell() + GIB)
    code = f"""
import resource
from timm_sk.pretrained.readers import read_checkpoint
pages = int(open('/proc/self/statm').read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + {GIB // 2}, resource.RLIM_INFINITY))
try:
    read_checkpoint({str(path)!r})
except ValueError as error:
    print(error)
"""
    assert f'its {path.stat().st_size} bytes do not fit in memory. Use a machine' in run_python('-c', code).stdout
