"""`timm-sk weights`: list, show, pull, convert, verify, and the messages of errors."""

import json
import os
import resource
import shutil

import pytest
import timm
import torch
from pretrained.readers.checkpoint_files import SAMPLES, torch_bytes
from safetensors.torch import load_file, save_file
from small_net import NAME, assert_loaded, create, sha256
from typer.testing import CliRunner
from upstream_files import filled_weights, write_original

from timm_sk.checkpoints import CHECKPOINTS, Source
from timm_sk.cli import app
from timm_sk.cli import weights as cli_weights
from timm_sk.pretrained import bundled_folder
from timm_sk.pretrained.lookup import find_row, find_rows
from timm_sk.publishing.hub_folder import GOLDEN
from timm_sk.publishing.local import state_of

FOLDER = bundled_folder(NAME)


def weights_command(*arguments: object) -> tuple[int, str]:
    """Run a command in this process; its exit code and all that it printed, in one line."""
    result = CliRunner().invoke(app, ['weights', *map(str, arguments)], env={'COLUMNS': '200'})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, ' '.join(result.output.split())


def test_list(store):
    code, text = weights_command('list')
    rows = [row for row in CHECKPOINTS.values() if row.sources]
    assert code == 0
    assert f'{len(rows)} checkpoints. Local store: {store.root}' in text
    for row in rows:
        assert f'{row.name} {state_of(row, store)}' in text
    assert {state_of(row, store) for row in rows} == {'bundled', 'on the hub', 'on the web', 'needs a file'}


def test_list_filters():
    _, text = weights_command('list', 'sknet*', '--state', 'needs a file')
    assert 'sknet50.implus_in1k needs a file' in text
    assert '3 checkpoints' in text
    assert weights_command('list', 'nothing') == (1, 'timm-sk: No checkpoint matches "nothing".')


def test_show():
    _, text = weights_command('show', 'sknet50_holocron.imagenette')
    for fact in ('apache-2.0', 'top-1 94.37 %', 'Imagenette validation', '141,253,623 bytes', 'state on the web'):
        assert fact in text
    assert 'e2349031c838a4661cd729dbc7825605c9e0c966bd89bbcc9b39f0e324894d1f' in text
    _, text = weights_command('show', 'sknet50')
    assert 'licence not stated' in text
    assert 'preprocessing 224, crop 0.875, not established; not established' in text


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('sknet_ato.digits', 'Unknown checkpoint "sknet_ato.digits". Nearest: sknet_atto.digits, sknet_atto, '),
        ('sknet_atto.*', '"sknet_atto.*" matches 2 checkpoints: name one of them.'),
        ('skresnet50', 'skresnet50.untrained is an untrained model: it has no weights.'),
    ],
)
def test_unknown_names(name, message):
    code, text = weights_command('show', name)
    assert (code, text[: len(message) + 9]) == (1, f'timm-sk: {message}')


@pytest.mark.parametrize('arch', sorted({row.arch for row in CHECKPOINTS.values() if row.sources}))
def test_bare_name_is_timms_default(arch):
    default = timm.get_pretrained_cfg(arch)
    assert [row.name for row in find_rows([arch])] == [find_row(arch).name] == [f'{arch}.{default.tag}']
    assert [row.name for row in find_rows([f'{arch}.*'])] == [
        row.name for row in CHECKPOINTS.values() if row.arch == arch and row.sources
    ]


def test_bare_name_in_every_command(tmp_path):
    for arguments in (['show'], ['card'], ['verify'], ['pull'], ['convert', FOLDER / 'model.safetensors', '--to']):
        code, text = weights_command(*arguments, 'sknet_atto')
        assert (code, NAME in text, 'sknet_atto.shapes' in text) == (0, True, False), text
    assert weights_command('pull', 'skresnet50')[0] == weights_command('verify', 'skresnet50')[0] == 1  # untrained


def test_json(store):
    rows = [row for row in CHECKPOINTS.values() if row.sources]
    documents = json.loads(CliRunner().invoke(app, ['weights', 'list', '--json']).stdout)
    assert [(one['name'], one['state'], one['top1']) for one in documents] == [
        (row.name, state_of(row, store), row.top1) for row in rows
    ]
    shown = json.loads(CliRunner().invoke(app, ['weights', 'show', NAME, '--json']).stdout)
    assert (shown['checkpoint'], shown['state']) == (NAME, 'bundled')


def test_list_off_a_terminal():
    printed = CliRunner().invoke(app, ['weights', 'list'], env={'COLUMNS': '40'}).stdout.splitlines()
    for row in (row for row in CHECKPOINTS.values() if row.sources):
        assert any(line.split()[:1] == [row.name] and line.rstrip().endswith(row.origin or '') for line in printed)


def test_manual_source(store, tmp_path):
    """The error of `pretrained=True` names the page and a command; the command makes it work."""
    name = 'skresnet50_insight.insight_in1k'
    code, text = weights_command('pull', name)
    assert code == 1
    assert 'https://drive.google.com/file/d/1DGYWPeKc7dyJ9i-zPJcPPa2engExPOnJ/view' in text
    assert f'run `timm-sk weights convert <FILE> --to {name}`' in text
    row = CHECKPOINTS[name]
    expected = filled_weights(row)
    write_original(expected, row, row.sources[0], tmp_path / 'sk_resnet50.pth.tar')
    code, text = weights_command('convert', tmp_path / 'sk_resnet50.pth.tar', '--to', name)
    assert (code, f'Load it with timm.create_model("{name}", pretrained=True).' in text) == (0, True)
    assert_loaded(timm.create_model(name, pretrained=True), expected)
    assert 'not pinned' in weights_command('show', name)[1]
    code, text = weights_command('verify', name)
    assert (code, 'not pinned' in text) == (0, True)
    assert state_of(row, store) == 'stored'
    assert (store.origin(name).location, store.origin(name).pinned) == (row.sources[0].location, False)


def test_tensorflow_checkpoint(store):
    pytest.importorskip('google_crc32c')
    name = 'skresnet50x1_simclr.ft_in1k'
    code, text = weights_command('show', name)
    assert (code, 'model.ckpt-37535.index (tensorflow); not pinned: no published hash' in text) == (0, True)
    code, text = weights_command('convert', SAMPLES.parent / 'tf_checkpoint' / 'model.ckpt-11.index', '--to', name)
    assert (code, f'is of training step 11, {name} of step 37535' in text) == (1, True)
    assert not store.folder(name).exists()


def test_convert_another_file(tmp_path, store):
    (tmp_path / 'other.pth').write_bytes(torch_bytes({'conv9.weight': torch.zeros(1)}))
    code, text = weights_command('convert', tmp_path / 'other.pth', '--to', 'skresnet50_insight.insight_in1k')
    assert code == 1
    assert 'The checkpoint is not of this model. Keys missing: conv1.weight' in text
    text = weights_command('convert', tmp_path / 'none', '--to', 'sknet50')[1]
    assert (str(tmp_path / 'none') in text, 'no such file' in text.lower(), 'Errno' in text) == (True, True, False)
    assert 'addresses are not supported' in weights_command('convert', 'https://a.b/c', '--to', 'sknet50')[1]
    assert not store.folder('skresnet50_insight.insight_in1k').exists()


def test_pull_twice(hub, online, store, row, hub_repo, weights):
    hub_repo()
    row(Source(kind='hub', location='makers/atto'))
    assert weights_command('pull', NAME) == (0, f'{NAME}: {store.folder(NAME)}')
    hub.requests.clear()
    assert weights_command('pull', NAME) == (0, f'{NAME}: {store.folder(NAME)}')
    assert not hub.requests
    assert_loaded(create(), weights)
    assert_loaded(timm.create_model(f'local-dir:{store.folder(NAME)}', pretrained=True), weights)


def test_pull_all_into_a_folder(hub, online, row, release, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(cli_weights, 'CHECKPOINTS', {NAME: row(release()[1])})
    code, text = weights_command('pull', '--all', tmp_path / 'carried')
    assert (code, f'Set TIMM_SK_HOME to a copy of {tmp_path / "carried"}' in text) == (0, True)
    monkeypatch.setenv('TIMM_SK_HOME', str(tmp_path / 'carried'))
    hub.requests.clear()
    assert_loaded(create(), weights)
    assert not hub.requests
    assert 'Name checkpoints, or give --all DIR.' in weights_command('pull')[1]


def test_verify():
    for target in (NAME, FOLDER / 'model.safetensors', FOLDER):
        code, text = weights_command('verify', target)
        assert code == 0
        assert CHECKPOINTS[NAME].sources[0].sha256 in text
        assert '168 tensors, all finite, with the keys and shapes of sknet_atto' in text
    assert 'same outputs as in golden.safetensors' in text
    assert f'published hash of {NAME}' in weights_command('verify', FOLDER / 'model.safetensors')[1]


def test_verify_errors(tmp_path):
    tensors = load_file(FOLDER / 'model.safetensors')
    broken = {**tensors, 'fc.bias': torch.full_like(tensors['fc.bias'], float('nan'))}
    save_file(broken, tmp_path / 'nan.safetensors')
    save_file({**tensors, 'fc.gain': torch.ones(1)}, tmp_path / 'more.safetensors')
    (tmp_path / 'noise.safetensors').write_bytes(b'\x80' * 100)
    (tmp_path / 'empty').mkdir()
    assert weights_command('verify', tmp_path / 'empty')[1].endswith('empty/config.json: no such file or directory.')
    for file, message in (
        ('nan.safetensors', "'fc.bias' has NaN or infinite values"),
        ('more.safetensors', 'Keys unexpected: fc.gain'),
        ('noise.safetensors', 'cannot be read as a checkpoint'),
    ):
        code, text = weights_command('verify', tmp_path / file, '--to', NAME)
        assert (code, message in text) == (1, True), text
    assert 'is not in the local store (on the hub): run' in weights_command('verify', 'skresnet18')[1]


@pytest.mark.deep
def test_convert_detector(tmp_path, store):
    row = CHECKPOINTS['resnest50d.coco_mask_rcnn']
    write_original(filled_weights(row), row, row.sources[0], tmp_path / 'detector.pth')
    code, text = weights_command('convert', tmp_path / 'detector.pth', '--to', row.name)
    assert code == 0
    assert 'without' not in text
    assert weights_command('verify', row.name)[0] == 0
    assert 'bn1.weight' in load_file(store.folder(row.name) / 'model.safetensors')


@pytest.mark.parametrize(
    ('content', 'name', 'reason'),
    [
        ({'trunk.bottom_up.stem.conv1_1.weight': torch.ones(1)}, 'resnest50d.coco_mask_rcnn', 'trunk.bottom_up.stem'),
        ({'backbone.bottom_up.res2.0.conv2.fc1.weight': torch.ones(1)}, 'resnest50d.coco_mask_rcnn', 'conv1.0.weight'),
        ({'backbone.bottom_up.res2.0.conv2_offset.bias': torch.ones(1)}, 'resnest50d.coco_mask_rcnn', 'conv2_offset'),
        ({'pretrained.layer1.0.conv1.weight': torch.ones(1)}, 'resnest50d.ade_fcn', 'none of the published files'),
        (b'\x80\x02cposix\nsystem\nX\x04\0\0\0true\x85R.', 'resnest50_paddle.paddle_in1k', "names 'posix.system'"),
    ],
)
def test_convert_unusable_backbones_and_pickles(tmp_path, store, content, name, reason):
    file = tmp_path / 'file.pdparams'
    file.write_bytes(content if isinstance(content, bytes) else torch_bytes(content))
    code, text = weights_command('convert', file, '--to', name)
    assert code == 1
    assert reason in text
    assert not store.folder(name).exists()


def test_convert_without_classifier(tmp_path):
    row = CHECKPOINTS['skresnet18.ra_in1k']
    expected = filled_weights(row)
    write_original(expected, row, row.sources[-1], tmp_path / 'encoder.safetensors')
    assert weights_command('convert', tmp_path / 'encoder.safetensors', '--to', row.name)[0] == 0
    assert_loaded(timm.create_model(row.name, pretrained=True, num_classes=5), expected, but='fc.')
    assert ', without the classifier' in weights_command('verify', row.name)[1]


def test_cached_hub_file(online, store, row, hub_repo):
    hub_repo()
    changed = row(Source(kind='hub', location='makers/atto'))
    assert state_of(changed, store) == 'on the hub'
    create()
    assert state_of(changed, store) == 'cached'
    code, text = weights_command('verify', NAME)
    assert (code, "in the cache of the Hub's client, not pinned" in text) == (0, True)
    assert 'not pinned: verified by the hub' in weights_command('show', NAME)[1]


def test_verify_recorded_hash(online, store, row, release):
    row(release()[1])
    weights_command('pull', NAME)
    folder = store.folder(NAME)
    assert f'{sha256((folder / "model.safetensors").read_bytes())}, as stored' in weights_command('verify', folder)[1]
    content = bytearray((folder / 'model.safetensors').read_bytes())
    content[-1] ^= 1
    (folder / 'model.safetensors').write_bytes(content)
    code, text = weights_command('verify', folder)
    assert (code, 'is damaged: its sha256 is' in text) == (1, True)


def test_name_before_folder(monkeypatch):
    monkeypatch.chdir(FOLDER.parent)
    assert ', as published' in weights_command('verify', NAME)[1]


@pytest.fixture
def folder(tmp_path):
    """A copy of a bundled checkpoint's folder."""
    return shutil.copytree(FOLDER, tmp_path / 'copy')


SHAPES = [(0, 3, 32, 32), (1, 1, 32, 32), (1, 3, 0, 32), (4, 3, 1100, 1100), (1 << 22, 3, 1, 1), (1, 3, 1, 1 << 22)]


@pytest.mark.parametrize('shape', SHAPES)
def test_goldens_of_another_shape(folder, shape, monkeypatch):
    if shape[1] == 3:  # the model is not run
        monkeypatch.delattr('timm_sk.publishing.hub_folder._logits')
    save_file(dict(inputs=torch.zeros(shape), logits=torch.zeros(max(shape[0] % 1000, 1), 10)), folder / GOLDEN)
    code, text = weights_command('verify', folder)
    assert (code, 'golden.safetensors holds' in text or 'of another model' in text) == (1, True)


def test_large_golden(folder):
    with (folder / GOLDEN).open('r+b') as file:
        file.truncate(1 << 30)
    code, text = weights_command('verify', folder)
    assert (code, 'is larger than' in text) == (1, True)


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='pipes of POSIX')
def test_pipe_in_place_of_weights(folder):
    (folder / 'model.safetensors').unlink()
    os.mkfifo(folder / 'model.safetensors')
    code, text = weights_command('verify', folder)
    assert (code, 'No such file' in text) == (1, True)


def test_verify_compares_logits(folder):
    golden = load_file(folder / 'golden.safetensors')
    save_file({**golden, 'logits': golden['logits'] + 1}, folder / 'golden.safetensors')
    code, text = weights_command('verify', folder)
    assert (code, 'The logits differ from those in' in text) == (1, True)


def test_invalid_options():
    assert 'Invalid state "nonsense": expected one of bundled' in weights_command('list', '--state', 'nonsense')[1]
    assert '--to needs a file' in weights_command('verify', NAME, '--to', 'skresnet18')[1]


@pytest.mark.parametrize('tag', ['../../x', 'a b', '', '[/x]', '-x'])
def test_invalid_tags(tmp_path, monkeypatch, tag):
    monkeypatch.chdir(tmp_path)
    file = FOLDER / 'model.safetensors'
    code, text = weights_command('package', file, '--arch', 'sknet_atto', f'--tag={tag}')
    assert (code, f'Invalid tag "{tag}"' in text) == (1, True)
    assert not list(tmp_path.glob('sknet*'))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(architecture='../../etc/passwd'), "Unknown architecture '../../etc/passwd'"),
        (dict(architecture='/bin/sh'), "Unknown architecture '/bin/sh'"),
        (dict(architecture=['sknet_atto']), 'Unknown architecture'),
        (dict(architecture='resnet18'), "Unknown architecture 'resnet18'"),
        (dict(num_classes='10'), "Invalid num_classes '10'"),
        (dict(num_classes=10**12), 'Invalid num_classes'),
        (dict(num_classes=-1), 'Invalid num_classes -1'),
        (dict(num_classes=True), 'Invalid num_classes True'),
        (dict(pretrained_cfg=[1]), 'Invalid num_classes'),
        (dict(pretrained_cfg=dict(first_conv=7)), 'Invalid first_conv 7'),
        (dict(num_classes=11), 'of another shape: fc.weight'),
        (dict(num_classes=999_999), 'of another shape: fc.weight'),
        *((content, 'config.json') for content in (b'', b'[]', b'{', b'\xff\xfe', b'[' * 100_000, b' ' * (2 << 20))),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_hostile_configs(folder, change, message):
    if isinstance(change, dict):
        change = json.dumps({**json.loads((folder / 'config.json').read_text()), **change}).encode()
    (folder / 'config.json').write_bytes(change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code, text = weights_command('verify', folder)
    assert (code, message in text) == (1, True), text
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB; 999,999 classes have 900 MB
