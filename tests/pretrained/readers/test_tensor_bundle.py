"""TensorFlow's V2 checkpoints: exact tensors, only those that are wanted, and every damage refused."""

import re
import shutil
import struct
from pathlib import Path

import pytest
import torch

pytest.importorskip('google_crc32c')
from checkpoint_files import EXPECTED, SAMPLES, field, varint, zip_bytes
from mutations import mutate
from subprocesses import run_python
from tensor_bundle_files import MAGIC, block_bytes, entry_bytes, handle, header, masked_crc, table_bytes, write_bundle
from test_readers import assert_same

from timm_sk.errors import UnreadableCheckpointError
from timm_sk.pretrained.readers import read_checkpoint, tensor_bundle

pytestmark = pytest.mark.deep

SAMPLE = SAMPLES.parent / 'tf_checkpoint' / 'model.ckpt-11.index'  # written by TensorFlow 2.21
DATA = 'net.data-00000-of-00001'
TENSORS = {
    'base_model/batch_normalization/gamma': torch.tensor([0.5, 1.5]),
    'base_model/conv2d/kernel': torch.arange(24.0).reshape(1, 2, 3, 4),
    'base_model/conv2d/kernel/Momentum': torch.ones(1, 2, 3, 4),
    'double': torch.tensor([0.1, 0.2]).double(),
    'ema_model/base_model/conv2d/kernel': torch.zeros(1, 2, 3, 4),
    'empty': torch.zeros(0, 3),
    'global_step': torch.tensor(751),
    'index': torch.tensor([3, -4], dtype=torch.int32),
}


def refusal(path: Path, **kwargs) -> str:
    with pytest.raises(UnreadableCheckpointError) as caught:
        read_checkpoint(path, **kwargs)
    message = str(caught.value)
    assert '\n' not in message
    assert len(message) < len(str(path)) + 400
    return message


def test_sample_of_tensorflow():
    read = read_checkpoint(SAMPLE)
    assert list(read) == sorted(read)
    norm = 'base_model/batch_normalization'
    assert torch.equal(read['base_model/conv2d/kernel'].permute(3, 2, 0, 1), EXPECTED['conv1.weight'])
    assert torch.equal(read[f'{norm}/gamma'], EXPECTED['bn1.gamma'])
    assert torch.equal(read[f'{norm}/beta'], EXPECTED['bn1.beta'])
    assert torch.equal(read['head_supervised/linear_layer/dense/kernel'].t(), EXPECTED['fc.weight'])
    assert torch.equal(read['global_step'], torch.tensor(11))
    assert torch.equal(read['base_model/conv2d/kernel/Momentum'], torch.zeros(3, 3, 3, 4))
    assert len(read) == 6


@pytest.mark.parametrize('num_shards', [1, 2, 3])
@pytest.mark.parametrize('per_block', [1, 5, 100])
def test_shards_and_blocks(tmp_path, num_shards, per_block):
    path = write_bundle(tmp_path / 'net', TENSORS.items(), num_shards=num_shards, per_block=per_block)
    assert_same(read_checkpoint(path), TENSORS)


def test_string_tensors_are_skipped(tmp_path):
    path = write_bundle(tmp_path / 'net', [('_CHECKPOINTABLE_OBJECT_GRAPH', b'\x05hello'), *TENSORS.items()])
    assert_same(read_checkpoint(path), TENSORS)


def test_only_wanted_tensors_are_read(tmp_path):
    path = write_bundle(tmp_path / 'net', TENSORS.items(), num_shards=2)
    names = ['base_model/conv2d/kernel', 'double']
    shards = {path.with_name(f'net.data-0000{shard}-of-00002') for shard in (0, 1)}
    for unwanted in shards:  # every other byte is damaged
        content = unwanted.read_bytes()
        with path.open('rb') as file:
            entries = tensor_bundle.read_index(file, path)
        kept = [entries[name] for name in names if entries[name].shard == unwanted]
        damaged = bytearray(byte ^ 1 for byte in content)
        for entry in kept:
            extent = slice(entry.offset, entry.offset + entry.size)
            damaged[extent] = content[extent]
        unwanted.write_bytes(damaged)
    assert_same(read_checkpoint(path, wanted=names.__contains__), {name: TENSORS[name] for name in names})
    assert 'checksum differs' in refusal(path)


def test_shards_without_wanted_tensors_are_not_opened(tmp_path):
    path = write_bundle(tmp_path / 'net', TENSORS.items(), num_shards=2)
    path.with_name('net.data-00001-of-00002').unlink()
    name = 'base_model/batch_normalization/gamma'
    assert_same(read_checkpoint(path, wanted=name.__eq__), {name: TENSORS[name]})
    assert 'its shard net.data-00001-of-00002 is missing. Put it into the same folder.' in refusal(path)


def flips(content: bytes, masks):
    for position in range(len(content)):
        for mask in masks:
            yield bytes(content[:position]) + bytes([content[position] ^ mask]) + content[position + 1 :]


@pytest.fixture(params=['sample', 'two shards and blocks'])
def bundle(request, tmp_path):
    """The index of a sound checkpoint, in a folder of its own."""
    if request.param == 'sample':
        for file in SAMPLE.parent.iterdir():
            shutil.copy(file, tmp_path / file.name.replace('model.ckpt-11', 'net'))
        return tmp_path / 'net.index'
    return write_bundle(tmp_path / 'net', TENSORS.items(), num_shards=2, per_block=8)


def assert_all_refused(bundle: Path, file: Path, damaged):
    """No damaged content of a file is read, and none makes another error."""
    content = file.read_bytes()
    count = 0
    for other in damaged:
        file.write_bytes(other)
        with pytest.raises(UnreadableCheckpointError):
            read_checkpoint(bundle)
        count += 1
    assert count >= len(content)
    file.write_bytes(content)
    assert read_checkpoint(bundle)


def test_truncation_is_refused(bundle):
    for file in sorted(bundle.parent.iterdir()):
        content = file.read_bytes()
        assert_all_refused(bundle, file, (content[:length] for length in range(len(content))))


def test_flipped_byte_is_refused(bundle):
    for file in sorted(bundle.parent.iterdir()):
        assert_all_refused(bundle, file, flips(file.read_bytes(), masks=[0xFF]))


def test_flipped_bit_of_the_index_is_refused(bundle):
    assert_all_refused(bundle, bundle, flips(bundle.read_bytes(), masks=[1 << bit for bit in range(8)]))


def lies() -> dict[str, tuple[bytes, str]]:
    """Indexes with correct checksums that lie, beside a shard of 8 bytes; name to content and reason of refusal."""
    first = header(1)

    def one(*, name: bytes = b'a', dtype=1, shape=(2,), shard=0, offset=0, size=8, more: bytes = b'') -> bytes:
        return table_bytes([first, (name, entry_bytes(dtype, shape, shard, offset, size, 0) + more)])

    good = entry_bytes(1, (2,), 0, 0, 8, masked_crc(bytes(8)))
    long_names = [first, *((b'%05d' % number + b'x' * 1000, good) for number in range(17_000))]
    shared = (
        varint(0)
        + varint(900)
        + varint(0)
        + b'a' * 900
        + b''.join(varint(900) + varint(5) + varint(0) + b'%05d' % number for number in range(60_000))
    )
    compressed = block_bytes([first], kind=1)
    many_handles = [(b'%06d' % number, handle(0, bytes(5))) for number in range(100_000)]
    distant = (varint(1 << 60) * 4).ljust(40, b'\0')
    return {
        'no header': (table_bytes([(b'a', good)]), 'names 0 shards'),
        'no records': (table_bytes([]), 'names 0 shards'),
        'a header without shards': (table_bytes([(b'', b'')]), 'names 0 shards'),
        '2**40 shards': (table_bytes([header(1 << 40)]), 'names 1099511627776 shards'),
        'big-endian': (table_bytes([header(1, big_endian=True)]), 'are big-endian'),
        'a tensor beyond its shard': (one(offset=4), 'should have 8 bytes, where 4 are left'),
        'a tensor of a terabyte': (one(shape=(1 << 38,), size=1 << 40), 'should have 1099511627776 bytes'),
        'a size that is not the shape': (one(size=4), "'a' has 4 bytes, its shape needs 8"),
        'an impossible shape': (one(shape=(1 << 40, 1 << 40)), 'impossible shape'),
        'a negative shape': (one(shape=(-2,)), 'impossible shape'),
        'a shape of many dimensions': (one(shape=(1,) * 100), 'impossible shape'),
        'a shape of 300,000 dimensions': (one(shape=(1,) * 300_000), 'more than 200000 protobuf fields'),
        'another checksum': (one(), "'a' is damaged: its checksum differs"),
        'another shard': (one(shard=1), "in shard 1 of 1"),
        'another type': (one(dtype=8), "'a' is of type 8; supported are 1, 2"),
        'slices': (one(more=field(7, b'')), "'a' is saved in slices"),
        'a name that is not text': (one(name=b'\xff'), 'name of a tensor is not valid UTF-8'),
        'a name of 2,000 bytes': (one(name=b'a' * 2000), 'a name that is too long'),
        'names of 17 MB': (table_bytes(long_names), 'more than 16777216 bytes'),
        'a name shared 60,000 times': (block_file(shared), 'more than 50000 names'),
        'tensors that overlap': (
            table_bytes([first, (b'a', good), (b'b', entry_bytes(1, (1,), 0, 4, 4, 0))]),
            "'b' overlaps another tensor",
        ),
        'two tensors in one place': (table_bytes([first, (b'a', good), (b'b', good)]), "'b' overlaps another tensor"),
        'one name twice': (table_bytes([first, (b'a', good), (b'a', good)]), "not in order: b'a' follows b'a'"),
        'names out of order': (table_bytes([first, (b'b', good), (b'a', good)]), "not in order: b'a' follows b'b'"),
        'an entry longer than its block': (block_file(varint(0) + varint(1) + varint(99) + b'a'), 'longer than its'),
        'an entry that shares too much': (block_file(varint(9) + varint(0) + varint(0)), 'longer than its'),
        'a number that does not end': (block_file(b'\xff' * 20), 'number that does not end'),
        'a million restarts': (
            file_of(with_trailer(struct.pack('<II', 0, 1_000_000))),
            'names 0 shards',
        ),
        'a compressed block': (file_of(compressed), 'is of type 1, not 0'),
        'metadata': (table_bytes([first], metadata=block_bytes([(b'filter', b'')])), "'filter' is of type 0"),
        'a gap between blocks': (file_of(block_bytes([first]), gap=b'\0'), 'begins at byte'),
        'a list of 100,000 blocks': (
            file_of(block_bytes([first]), handles=many_handles),
            'begins at byte',
        ),
        'blocks beyond the file': (bytes(8) + distant + MAGIC, 'a block of its index has'),
        'a footer alone': (bytes(40) + MAGIC, 'footer of its index is damaged|a block of its index has 0 bytes'),
        'half a footer': (bytes(10) + MAGIC, 'magic number of a table'),
        'a large index': (bytes((16 << 20) + 1) + MAGIC, 'its index has more than 16777216 bytes'),
        'no tensors': (table_bytes([first]), 'not a state dict'),
    }  # fmt: skip


def with_trailer(content: bytes) -> bytes:
    return content + b'\0' + struct.pack('<I', masked_crc(content + b'\0'))


def block_file(entries: bytes) -> bytes:
    """A table whose one block has these entries after the header's."""
    key, value = header(1)
    first = varint(0) + varint(len(key)) + varint(len(value)) + key + value
    return file_of(with_trailer(first + entries + struct.pack('<II', 0, 1)))


def file_of(block: bytes, *, gap: bytes = b'', handles: list[tuple[bytes, bytes]] | None = None) -> bytes:
    """A table of one block."""
    metadata, index = block_bytes([]), block_bytes([(b'~', handle(0, block))] if handles is None else handles)
    begin = len(block) + len(gap)
    footer = handle(begin, metadata) + handle(begin + len(metadata), index)
    return block + gap + metadata + index + footer.ljust(40, b'\0') + MAGIC


LIES = lies()


@pytest.mark.parametrize('name', LIES)
def test_hostile_index(tmp_path, name):
    content, reason = LIES[name]
    (tmp_path / DATA).write_bytes(bytes(8))
    path = tmp_path / 'net.index'
    path.write_bytes(content)
    assert re.search(reason, refusal(path))


def test_index_under_another_name(tmp_path):
    shutil.copy(SAMPLE, tmp_path / 'checkpoint')
    assert 'its name does not end with .index. Rename it.' in refusal(tmp_path / 'checkpoint')


def test_shard_instead_of_the_index(tmp_path):
    path = write_bundle(tmp_path / 'net', TENSORS.items())
    assert 'the .index of a TensorFlow checkpoint' in refusal(path.with_name(DATA))


def test_index_in_a_zip(tmp_path):
    path = tmp_path / 'net.zip'
    path.write_bytes(zip_bytes({'net.index': SAMPLE.read_bytes()}))
    assert 'it is a tensorflow-index in a zip. Unpack it first.' in refusal(path)


def test_google_crc32c_is_missing():
    code = f"""
import sys
sys.modules['google_crc32c'] = None
from timm_sk.pretrained.readers import read_checkpoint
try:
    read_checkpoint({str(SAMPLE)!r})
except ValueError as error:
    print(type(error).__name__, error)
"""
    (line,) = run_python('-c', code).stdout.splitlines()
    assert line.startswith('UnreadableCheckpointError')
    assert line.endswith("reading it needs google-crc32c. Install it: pip install 'timm_sk[convert]'.")


@pytest.mark.parametrize('part', ['index', 'block', 'shard'])
def test_fuzz(tmp_path, part):
    """Mutations give tensors or our error, also where the index's checksums are correct."""
    hypothesis = pytest.importorskip('hypothesis')
    from test_readers_fuzz import EDITS, FUZZING, bounded_memory
    from test_readers_fuzz import error_of as reason_of

    path = write_bundle(tmp_path / 'net', TENSORS.items())
    shard, index = path.with_name(DATA), path.read_bytes()
    content, block = shard.read_bytes(), index[: index.index(block_bytes([])) - 5]
    counts = dict(read=0, refused=0)

    @hypothesis.settings(FUZZING, max_examples=600)
    @hypothesis.given(EDITS)
    def check(edits):
        if part == 'shard':
            shard.write_bytes(mutate(content, 0, edits))
        elif part == 'index':
            path.write_bytes(mutate(index[::-1], len(MAGIC), edits)[::-1])
        else:
            path.write_bytes(file_of(with_trailer(mutate(block, 0, edits))))
        if reason := reason_of(read_checkpoint, path):
            assert 'memory' not in reason
            counts['refused'] += 1
        else:
            assert sum(tensor.nbytes for tensor in read_checkpoint(path).values()) <= len(content)
            counts['read'] += 1

    with bounded_memory():
        check()
    assert counts['refused'] > 300
