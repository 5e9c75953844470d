"""Checkpoints of SimCLRv2: both layouts, what is refused, and downloads of an index and its shards."""

import shutil
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import timm
import torch
from hub_server import Fault
from random_weights import fill_model
from safetensors.torch import load_file
from small_net import sha256
from subprocesses import run_python

pytest.importorskip('google_crc32c')
from pretrained.readers.checkpoint_files import torch_bytes
from pretrained.readers.tensor_bundle_files import write_bundle

import timm_sk
from timm_sk.checkpoints import CHECKPOINTS, Source
from timm_sk.errors import MismatchedCheckpointError, UnobtainableCheckpointError, UnreadableCheckpointError
from timm_sk.pretrained import fetch, read_checkpoint, store_file, to_our_layout
from timm_sk.pretrained.convert import LAYOUTS, is_simclr_variable, recognize
from timm_sk.pretrained.http_download import download

pytestmark = pytest.mark.deep

NAME, PROJ_NAME = 'skresnet50x1_simclr.ft_in1k', 'skresnet50x1_simclr_proj.ft1_in1k'
PORT, TENSORFLOW = LAYOUTS['PyTorch SimCLRv2'], LAYOUTS['TensorFlow SimCLRv2']
SHARD = 'model.ckpt-37535.data-00000-of-00001'


def narrow(arch: str = 'skresnet50x1_simclr', **kwargs) -> torch.nn.Module:
    """A net of few channels and all blocks, with random weights."""
    return fill_model(timm.create_model(arch, channels=(8, 8, 8, 8), stem_width=4, num_classes=5, **kwargs)).eval()


@pytest.fixture(scope='module')
def weights():
    return without_counters(narrow('skresnet50x1_simclr_proj').state_dict())


def without_counters(state_dict):
    return {key: value for key, value in state_dict.items() if not key.endswith('num_batches_tracked')}


def without_proj(state_dict):
    return {key: value for key, value in state_dict.items() if not key.startswith('proj.')}


@pytest.fixture(scope='module')
def variables(weights):
    """What TensorFlow saves: weights, optimizer, moving averages, step and the rest of the head, sorted by name."""
    variables = TENSORFLOW.to_theirs(weights)
    others = {f'{key}/Momentum': torch.zeros_like(value) for key, value in variables.items() if 'moving' not in key}
    averages = {f'ema_model/{key}': value + 1 for key, value in variables.items()}
    head = {'head_contrastive/nl_2/dense/kernel': torch.ones(32, 16), 'global_step': torch.tensor(37535)}
    return dict(sorted({**variables, **others, **averages, **head}.items()))


@pytest.fixture
def checkpoint(variables, tmp_path):
    """The index of a checkpoint on the disk."""
    return write_bundle(tmp_path / 'model.ckpt-37535', variables.items())


def shapes_of(state_dict):
    return lambda: {key: value.shape for key, value in state_dict.items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize('arch', ['skresnet50x1_simclr', 'skresnet101x1_simclr', 'skresnet152x1_simclr_proj'])
@pytest.mark.parametrize('layout', [PORT, TENSORFLOW], ids=['port', 'tensorflow'])
def test_round_trip(arch, layout):
    ours = without_counters(narrow(arch).state_dict())
    theirs = layout.to_theirs(ours)
    assert_equal(layout.to_ours(theirs), ours)
    assert recognize(theirs) is layout
    assert recognize(ours) is None


def test_numbers_of_variables(weights):
    """With the classifier: 373, 730 and 1,087 variables; the projection layer has 5 more."""
    assert len(TENSORFLOW.to_theirs(without_proj(weights))) == 373
    assert len(TENSORFLOW.to_theirs(weights)) == 378
    for arch, count in (('skresnet101x1_simclr', 730), ('skresnet152x1_simclr', 1087)):
        assert len(TENSORFLOW.to_theirs(timm.create_model(arch, device='meta').state_dict())) == count


def test_counters_of_batches_are_dropped(weights):
    counted = narrow('skresnet50x1_simclr_proj').state_dict()
    for layout in (PORT, TENSORFLOW):
        assert layout.to_theirs(counted).keys() == layout.to_theirs(weights).keys()
    assert_equal(PORT.to_ours({**PORT.to_theirs(weights), 'net.0.1.0.num_batches_tracked': torch.tensor(3)}), weights)


@pytest.mark.parametrize(
    'key',
    ['base_model/conv2/kernel', 'base_model/batch_normalization_71/beta', 'head_supervised/linear_layer/bias', 'x'],
)
def test_variable_without_a_place_is_refused(variables, key):
    with pytest.raises(MismatchedCheckpointError, match=f'^"{key}" is not a key of the layout TensorFlow SimCLRv2'):
        TENSORFLOW.to_ours({**variables, key: torch.zeros(1)})


def test_tensor_without_a_place_is_refused(weights):
    for layout in (PORT, TENSORFLOW):
        with pytest.raises(MismatchedCheckpointError, match=r'"layer1\.0\.conv9\.weight" has no counterpart in'):
            layout.to_theirs({**weights, 'layer1.0.conv9.weight': torch.zeros(1)})


@pytest.mark.parametrize('layout', [PORT, TENSORFLOW], ids=['port', 'tensorflow'])
def test_architecture_decides_about_the_projection_layer(weights, layout):
    theirs = layout.to_theirs(weights)
    assert_equal(to_our_layout(theirs, arch='skresnet50x1_simclr_proj'), weights)
    assert_equal(to_our_layout(theirs, arch='skresnet50x1_simclr'), without_proj(weights))
    with pytest.raises(MismatchedCheckpointError, match=r"pools\. .* SimCLRv2's with `_simclr`"):
        to_our_layout(theirs, arch='skresnet50d')


def test_other_layout_for_a_simclr_net():
    with pytest.raises(MismatchedCheckpointError, match='not of skresnet50x1_simclr'):
        to_our_layout({'layer2.0.down_sample.0.weight': torch.zeros(1)}, arch='skresnet50x1_simclr')


def test_file_of_the_port(weights, store, tmp_path):
    theirs = PORT.to_theirs(weights)
    net = {key: value for key, value in theirs.items() if not key.startswith('head.')}
    head = {key.removeprefix('head.'): value for key, value in theirs.items() if key.startswith('head.')}
    head['layers.3.weight'] = torch.ones(2, 2)
    path = tmp_path / 'r50_1x_sk1.pth'
    path.write_bytes(torch_bytes(dict(resnet=net, head=head)))
    plain = without_proj(weights)
    row = CHECKPOINTS['skresnet50x1_simclr.linear_in1k']
    assert_equal(load_file(store_file(path, row, shapes_of(plain)(), store=store)), plain)
    path.write_bytes(torch_bytes(dict(resnet=net)))
    assert_equal(read_checkpoint(path), net)


def test_file_of_tensorflow(checkpoint, weights, store):
    plain = without_proj(weights)
    assert_equal(load_file(store_file(checkpoint, CHECKPOINTS[NAME], shapes_of(plain)(), store=store)), plain)
    origin = store.origin(NAME)
    assert (origin.pinned, origin.sha256) == (False, sha256(checkpoint.read_bytes()))


def refusal(path, name, shapes, store, error):
    """The error's message; nothing is stored."""
    with pytest.raises(error) as caught:
        store_file(path, CHECKPOINTS[name], shapes, store=store)
    assert not store.folder(name).exists()
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_file_of_another_step(checkpoint, weights, store):
    """A file for a projection layer under a plain name: names and shapes are the same, the training step is not."""
    plain = shapes_of(without_proj(weights))()
    message = refusal(checkpoint, 'skresnet50x1_simclr.sup_in1k', plain, store, MismatchedCheckpointError)
    assert 'of training step 37535, skresnet50x1_simclr.sup_in1k of step 28151: it is another checkpoint.' in message
    message = refusal(checkpoint, PROJ_NAME, shapes_of(weights)(), store, MismatchedCheckpointError)
    assert 'supervised' not in message
    assert 'finetuned_1pct/r50_1x_sk1/model.ckpt-751.index' in message


def test_file_of_another_width_or_head(variables, weights, store, tmp_path):
    other = shapes_of(without_proj(timm.create_model('skresnet50x1_simclr', device='meta').state_dict()))()
    path = write_bundle(tmp_path / 'net', ((k, v) for k, v in variables.items() if k != 'global_step'))
    assert 'of another shape: conv1.0.weight' in refusal(path, NAME, other, store, MismatchedCheckpointError)
    headless = ((k, v) for k, v in variables.items() if k != 'global_step' and not k.startswith('head_contrastive'))
    path = write_bundle(tmp_path / 'net', headless)
    message = refusal(path, PROJ_NAME, shapes_of(weights)(), store, MismatchedCheckpointError)
    assert 'Keys missing: proj.0.weight, proj.1.weight' in message


@pytest.mark.parametrize('shape', [(), (1,), (3, 3), (1, 3, 3), (1, 1, 1, 1, 1)])
def test_kernels_of_other_dimensions(weights, store, tmp_path, shape):
    changed = {key: torch.zeros(shape) for key in ('base_model/conv2d_5/kernel', 'head_contrastive/nl_0/dense/kernel')}
    variables = {**TENSORFLOW.to_theirs(weights), **changed}
    path = write_bundle(tmp_path / 'net', sorted(variables.items()))
    assert 'conv2.paths.0.conv.weight' in refusal(
        path, PROJ_NAME, shapes_of(weights)(), store, MismatchedCheckpointError
    )
    head = {f'head_contrastive/nl_{layer}/dense/kernel': torch.zeros(shape) for layer in range(3)}
    head |= {f'head_contrastive/nl_{layer}/batch_normalization/gamma': torch.zeros(shape) for layer in range(3)}
    with pytest.raises(MismatchedCheckpointError):
        timm_sk.simclr_projection(write_bundle(tmp_path / 'head', sorted(head.items())))


@pytest.mark.parametrize('damage', ['missing', 'short', 'flipped'])
def test_damaged_shard(checkpoint, weights, store, damage):
    shard = checkpoint.with_name(SHARD)
    content = shard.read_bytes()
    if damage == 'missing':
        shard.unlink()
    else:
        shard.write_bytes(content[:-1000] if damage == 'short' else bytes([content[0] ^ 1]) + content[1:])
    reason = dict(missing=f'its shard {SHARD} is missing', short='bytes, where', flipped='checksum differs')[damage]
    shapes = shapes_of(without_proj(weights))()
    assert reason in refusal(checkpoint, NAME, shapes, store, UnreadableCheckpointError)


def test_projection_head_of_a_file(tmp_path, variables):
    leaves = ('beta', 'gamma', 'moving_mean', 'moving_variance')
    head, x, expected = {}, torch.randn(4, 32), None
    for layer, width in enumerate((32, 32, 16)):
        scope = f'head_contrastive/nl_{layer}'
        kernel, norm = torch.randn(32, width), {leaf: torch.rand(width) for leaf in leaves}
        if layer == 2:
            norm['beta'] = torch.zeros(width)  # which is not saved
        y = (x if expected is None else expected.relu()) @ kernel - norm['moving_mean']
        expected = y / (norm['moving_variance'] + 1e-5).sqrt() * norm['gamma'] + norm['beta']
        head[f'{scope}/dense/kernel'] = kernel
        head |= {f'{scope}/batch_normalization/{leaf}': value for leaf, value in norm.items()}
    del head['head_contrastive/nl_2/batch_normalization/beta']
    path = write_bundle(tmp_path / 'model.ckpt-250228', sorted({**variables, **head}.items()))
    assert torch.allclose(timm_sk.simclr_projection(path)(x), expected, atol=1e-4)
    path = write_bundle(tmp_path / 'net', variables.items())
    with pytest.raises(MismatchedCheckpointError, match='has no projection head'):
        timm_sk.simclr_projection(path)


def test_upload_of_the_port(hub, online, weights, store, tmp_path):
    theirs = PORT.to_theirs(without_proj(weights))
    folder = tmp_path / 'upload'
    folder.mkdir()
    (folder / 'r50_1x_sk1.pth').write_bytes(torch_bytes(dict(resnet=theirs, head={'layers.0.weight': torch.ones(1)})))
    row = CHECKPOINTS['skresnet50x1_simclr.linear_in1k']
    hub.add(row.sources[0].location, folder)
    path = fetch(row, shapes_of(without_proj(weights)), store=store)
    assert_equal(load_file(path), without_proj(weights))
    assert store.origin(row.name).location == 'lightly-ai/simclrv2-imagenet1k-r50_1x_sk1'


@pytest.fixture
def released(hub, checkpoint):
    """The checkpoint on a server, as a row; the shard's content can be changed there."""
    for file in checkpoint.parent.iterdir():
        hub.files[file.name] = file.read_bytes()
        file.unlink()
    location = f'{hub.endpoint}/files/{checkpoint.name}'
    return replace(CHECKPOINTS[NAME], sources=(Source(kind='url', location=location, format='tensorflow'),))


@pytest.fixture
def fetched(released, weights, store):
    plain = without_proj(weights)

    def fetch_and_compare(row=released):
        path = fetch(row, shapes_of(plain), store=store)
        assert_equal(load_file(path), plain)
        assert not (store.root / '.downloads' / NAME).exists()

    return fetch_and_compare


def test_only_weights_are_downloaded(hub, online, store, fetched, variables, monkeypatch):
    monkeypatch.setattr('timm_sk.pretrained.tensor_download._MAX_GAP_BYTES', 0)
    received = []
    monkeypatch.setattr(
        'timm_sk.pretrained.tensor_download.download',
        lambda url, path, *, extent, **kwargs: received.append(extent) or download(url, path, extent=extent, **kwargs),
    )
    fetched()
    weights_bytes = sum(v.nbytes for k, v in variables.items() if is_simclr_variable(k))
    assert sum(end - begin for begin, end in received) == weights_bytes
    assert weights_bytes < len(hub.files[SHARD]) / 2
    origin = store.origin(NAME)
    assert (origin.pinned, origin.sha256) == (False, sha256(hub.files['model.ckpt-37535.index']))
    hub.files.clear()
    fetched()  # from the store


def test_damage_in_transit_is_downloaded_again(hub, online, fetched, waits):
    hub.faults.append(Fault(request='GET .*data-', flip=0))
    fetched()
    assert hub.faults[0].hits == 1


def test_connection_that_breaks_is_resumed(hub, online, fetched, waits):
    hub.faults.append(Fault(request='GET .*data-', cut=1000))
    fetched()
    assert waits


def test_interrupted_download_goes_on(hub, online, fetched, released, weights, store, monkeypatch):
    monkeypatch.setattr('timm_sk.pretrained.tensor_download._MAX_GAP_BYTES', 0)
    hub.faults += [Fault(request='GET .*data-', times=3), Fault(request='GET .*data-', status=404)]  # the fourth part
    with pytest.raises(UnobtainableCheckpointError, match='the server answers 404'):
        fetched()
    assert (store.root / '.downloads' / NAME / SHARD).exists()
    before = hub.requests.total()
    fetched()
    total = hub.requests.total()
    shutil.rmtree(store.folder(NAME))
    fetched()
    assert total - before == hub.requests.total() - total - 4  # the index and three parts were there already


def test_checkpoint_that_stays_damaged(hub, online, fetched, store):
    shard = hub.files[SHARD]
    hub.files[SHARD] = bytes([shard[0] ^ 1]) + shard[1:]
    with pytest.raises(UnobtainableCheckpointError, match='is damaged: its checksum differs'):
        fetched()
    assert not (store.root / '.downloads' / NAME).exists()
    assert not store.folder(NAME).exists()


def test_server_without_ranges(online, fetched, released, variables, tmp_path):
    folder = tmp_path / 'served'
    folder.mkdir()
    write_bundle(folder / 'model.ckpt-37535', variables.items())
    handler = type('Quiet', (SimpleHTTPRequestHandler,), dict(log_message=lambda *_: None))
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        location = f'http://127.0.0.1:{server.server_port}/model.ckpt-37535.index'
        row = replace(released, sources=(replace(released.sources[0], location=location),))
        with pytest.raises(UnobtainableCheckpointError, match='the server does not send parts of a file'):
            fetched(row)
        server.shutdown()


def test_index_of_too_much(hub, online, fetched, monkeypatch):
    monkeypatch.setattr('timm_sk.pretrained.tensor_download.MAX_BYTES', 1000)
    with pytest.raises(UnobtainableCheckpointError, match='the limit is 1000'):
        fetched()


CONVERT = """
import resource, sys, time
from pathlib import Path
import timm_sk
from timm_sk.checkpoints import CHECKPOINTS
from timm_sk.models._builder import shapes_of
from timm_sk.pretrained import store_file

row = CHECKPOINTS['skresnet152x3_simclr.sup_in1k']
shapes = shapes_of(row)
before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10, time.perf_counter()
print(store_file(Path(sys.argv[1]), row, shapes))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
print(before, peak, time.perf_counter() - begin)
"""


@pytest.mark.timeout(1200)
def test_memory_of_the_largest_net(tmp_path, record_property):
    """A checkpoint of 6.4 GB, half of it the optimizer's, is converted in the memory of the net."""
    net = timm.create_model('skresnet152x3_simclr', device='meta').state_dict()
    shapes = {key: tensor.shape for key, tensor in TENSORFLOW.to_theirs(net).items()}
    names = sorted([*shapes, *(f'{key}/Momentum' for key in shapes)])
    make = {name: torch.rand if name in shapes else torch.zeros for name in names}
    tensors = ((name, make[name](shapes[name.removesuffix('/Momentum')])) for name in names)
    path = write_bundle(tmp_path / 'model.ckpt-28151', tensors)
    done = run_python('-c', CONVERT, str(path), TIMM_SK_HOME=str(tmp_path / 'store'))
    assert not done.returncode, done.stderr
    stored, measured = done.stdout.splitlines()
    before, peak, seconds = map(float, measured.split())
    net_bytes = 4 * sum(shape.numel() for shape in shapes.values())
    record_property('peak_gib', peak / 2**30)
    record_property('seconds', seconds)
    assert (
        abs((tmp_path / 'store' / 'skresnet152x3_simclr.sup_in1k' / 'model.safetensors').stat().st_size / net_bytes - 1)
        < 1e-3
    )
    assert peak - before < 1.2 * net_bytes
    assert stored
