"""Any bytes give tensors or our error, and take no more memory than the file."""

import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from checkpoint_files import MAGIC_PICKLE, detect_format
from mutations import KINDS, NUMBERS, mutate, subjects

from timm_sk.errors import UnreadableCheckpointError
from timm_sk.pretrained.readers import read_checkpoint
from timm_sk.pretrained.readers.stream import FormatError

pytest.importorskip('hypothesis')
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.deep

MUTATED_PER_SUBJECT, RANDOM = 600, 1500
ROOM = 192 << 20
SUBJECTS = subjects()
FUZZING = settings(
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

POSITIONS, ANY_NUMBER = st.integers(0, 4095), st.one_of(st.sampled_from(NUMBERS), st.integers(0, 4095))
EDIT = st.tuples(st.sampled_from(KINDS), POSITIONS, st.integers(1, 64), ANY_NUMBER)
EDITS = st.lists(EDIT, min_size=1, max_size=4)
MAGICS = (
    b'',
    MAGIC_PICKLE,
    b'PK\x03\x04',
    b'\x12\x01' + bytes(14),
    bytes(8) + b'{"',
    b'\x0a\x03net\xa2\x06',
    b'\x0a\x12\x0a\x01a\x12',
)


@contextmanager
def bounded_memory():
    """Address space for what there is now and `ROOM` more, where the system tells."""
    statistics = Path('/proc/self/statm')
    if not statistics.exists():
        yield
        return
    import resource

    pages = int(statistics.read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def error_of(function, path):
    """The error's message, if there is an error."""
    try:
        function(path)
    except (UnreadableCheckpointError, FormatError) as error:
        return str(error)
    return None


def outcome_of(path):
    """Where the file is refused, if it is."""
    undetected, refused = error_of(detect_format, path), error_of(read_checkpoint, path)
    if undetected:
        assert undetected in refused
        return 'refused by detection'
    if refused:
        assert 'memory' not in refused
        assert 'alloc' not in refused
        return 'refused by its reader'
    tensors = read_checkpoint(path)
    assert tensors
    for key, tensor in tensors.items():
        assert type(key) is str
        assert type(tensor) is torch.Tensor
        assert tensor.is_contiguous()
        tensor.double().sum()  # every number is there
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) <= 4 * path.stat().st_size + 4096
    return 'read'


def run(path, counts, content):
    path.write_bytes(content)
    counts[outcome_of(path)] += 1


@pytest.mark.parametrize('name', SUBJECTS)
def test_mutated_files(name, tmp_path, record_property):
    subject, counts, begin = SUBJECTS[name], Counter(), time.process_time()
    path = tmp_path / 'checkpoint'
    path.write_bytes(subject.build(subject.part))
    assert outcome_of(path) == 'read'

    @settings(FUZZING, max_examples=MUTATED_PER_SUBJECT)
    @given(EDITS)
    def check(edits):
        part = mutate(subject.part, subject.kept, edits)
        if part == subject.part:
            counts['unchanged'] += 1
        else:
            run(path, counts, subject.build(part))

    with bounded_memory():
        check()
    assert sum(counts.values()) >= MUTATED_PER_SUBJECT
    assert counts['unchanged'] < MUTATED_PER_SUBJECT / 20
    assert counts['refused by its reader'] > MUTATED_PER_SUBJECT / 20
    assert list(tmp_path.iterdir()) == [path]
    record_property('mutated', dict(counts))
    record_property('cpu_seconds', round(time.process_time() - begin, 1))


def test_random_bytes(tmp_path, record_property):
    path, counts, begin = tmp_path / 'checkpoint', Counter(), time.process_time()

    @settings(FUZZING, max_examples=RANDOM)
    @given(st.sampled_from(MAGICS), st.binary(max_size=300))
    def check(magic, content):
        run(path, counts, magic + content)

    with bounded_memory():
        check()
    assert sum(counts.values()) >= RANDOM
    assert counts['refused by detection'] >= RANDOM / 20
    assert counts['refused by its reader'] >= RANDOM / 20
    record_property('random', dict(counts))
    record_property('cpu_seconds', round(time.process_time() - begin, 1))
