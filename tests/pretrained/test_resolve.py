"""Weights come from the first source that works, are verified, and load without a network afterwards."""

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from random_weights import fill_model
from safetensors.torch import load_file
from small_net import NAME, assert_loaded, create, hub_source, sha256
from subprocesses import run_python

from timm_sk.checkpoints import CHECKPOINTS, Source
from timm_sk.errors import CorruptCheckpointError, UnobtainableCheckpointError, UnreadableCheckpointError
from timm_sk.models._builder import shapes_of
from timm_sk.pretrained import Store, bundled_folder, fetch, store_file
from timm_sk.pretrained.convert import LAYOUTS


def refuse_shapes():
    raise AssertionError('nothing was to be converted')


def test_bundled(hub, online, store):
    path = fetch(CHECKPOINTS[NAME], refuse_shapes)
    assert path == bundled_folder(NAME) / 'model.safetensors'
    create()
    assert not hub.requests
    assert not store.root.exists()


@pytest.mark.parametrize('pinned', [True, False])
def test_hub_file_in_the_clients_cache(hub, online, store, row, hub_repo, weights, pinned):
    commit = hub_repo()
    content = hub.repos['makers/atto'].files()['model.safetensors'].content
    source = hub_source(sha256=sha256(content), revision=commit) if pinned else hub_source()
    row(source)
    assert_loaded(create(), weights)
    assert fetch(CHECKPOINTS[NAME], refuse_shapes).is_relative_to(online)
    assert not store.folder(NAME).exists()
    (record,) = (store.root / '.first-seen').iterdir()
    assert json.loads(record.read_text())['sha256'] == sha256(content)
    if pinned:  # a commit's file cannot change
        assert hub.requests == {('HEAD', 'resolve'): 2, ('GET', 'resolve'): 1}


def test_cache_dir(hub, online, store, row, hub_repo, release, weights, tmp_path):
    hub_repo()
    row(hub_source())
    assert_loaded(create(cache_dir=tmp_path / 'mine'), weights)
    assert (tmp_path / 'mine' / 'models--makers--atto').is_dir()
    row(release()[1])
    assert_loaded(create(cache_dir=tmp_path / 'mine'), weights)
    assert (tmp_path / 'mine' / 'timm_sk' / NAME / 'model.safetensors').is_file()
    assert not online.exists()
    assert not store.root.exists()


@pytest.mark.parametrize('hashes', ['sha256', 'prefix', 'size', 'none'])
def test_release_is_converted_and_stored(hub, online, store, row, release, weights, hashes):
    content, source = release()
    known = dict(
        sha256=dict(sha256=sha256(content)),
        prefix=dict(sha256_prefix=sha256(content)[:8]),
        size=dict(size=len(content)),
        none={},
    )[hashes]
    row(replace(source, **known))
    before = json.dumps(timm.get_pretrained_cfg(NAME).to_dict())
    for _ in range(2):
        model = create()
        assert_loaded(model, weights)
        assert json.dumps(model.pretrained_cfg) == before
    assert hub.requests['GET', 'files'] == 1
    stored = load_file(store.folder(NAME) / 'model.safetensors')
    assert list(stored) == list(weights)
    origin = store.origin(NAME)
    assert (origin.kind, origin.location, origin.sha256) == ('url', source.location, sha256(content))
    assert origin.pinned == (hashes == 'sha256')
    assert not list(store.root.glob('.downloads/*'))
    assert not [*store.root.glob('.*.new'), *store.root.glob('.*.old')]


def test_local_dir_of_a_stored_folder(online, store, row, release, weights):
    row(release()[1])
    create()
    model = timm.create_model(f'local-dir:{store.folder(NAME)}', pretrained=True)
    assert_loaded(model, weights)
    cfg = timm.get_pretrained_cfg(NAME)
    for field in ('tag', 'input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'first_conv', 'label_names'):
        assert json.dumps(model.pretrained_cfg[field]) == json.dumps(getattr(cfg, field))


def test_other_layout(hub, online, store, monkeypatch, tmp_path):
    name = 'skresnet18_mindcv.mindcv_in1k'
    weights = fill_model(timm.create_model(name)).state_dict()
    theirs = LAYOUTS['MindCV SK-ResNet'].to_theirs(weights)
    assert 'layer2.0.down_sample.0.weight' in theirs
    torch.save(theirs, tmp_path / 'theirs.pth')
    hub.files['theirs.pth'] = (tmp_path / 'theirs.pth').read_bytes()
    (tmp_path / 'repository').mkdir()
    (tmp_path / 'theirs.pth').rename(tmp_path / 'repository' / 'theirs.pth')
    hub.add('makers/theirs', tmp_path / 'repository')
    for source in (
        Source(kind='url', location=f'{hub.endpoint}/files/theirs.pth', format='pytorch'),
        hub_source('makers/theirs', filename='theirs.pth', format='pytorch'),
    ):
        monkeypatch.setitem(CHECKPOINTS, name, replace(CHECKPOINTS[name], sources=(source,)))
        monkeypatch.setenv('TIMM_SK_HOME', str(tmp_path / f'store-{source.kind}'))
        assert_loaded(timm.create_model(name, pretrained=True), weights)
        stored = load_file(tmp_path / f'store-{source.kind}' / name / 'model.safetensors')
        assert list(stored) == [key for key in weights if not key.endswith('num_batches_tracked')]


def test_order_of_sources(hub, online, store, row, hub_repo, release, weights, monkeypatch):
    """Each source has other weights, and is taken away after it was seen to win."""

    def varied(number):
        return {**weights, 'fc.bias': torch.full_like(weights['fc.bias'], number)}

    hub_repo(state_dict=varied(1))
    _, url = release(state_dict=varied(2))
    bundled = CHECKPOINTS[NAME].bundled
    row(hub_source(), url)
    create()
    stored = row(url)
    fetch(stored, lambda: shapes_of(stored))
    row(bundled, hub_source(), url)
    found = []
    for absent in ('nothing', 'bundled', 'store', 'hub'):
        if absent == 'bundled':
            row(hub_source(), url)
        elif absent == 'store':
            store.folder(NAME).rename(store.root / 'away')
        elif absent == 'hub':
            hub.repos.clear()
            monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(store.root / 'cold'))
        found.append(create().fc.bias[0].item())
    assert found == [float(load_file(bundled_folder(NAME) / 'model.safetensors')['fc.bias'][0]), 2, 1, 2]


def test_error_lists_all_failures(hub, online, store, row):
    gone = Source(kind='url', location=f'{hub.endpoint}/files/gone.pth', format='pytorch')
    headless = hub_source('makers/headless', has_classifier=False)
    row(hub_source('makers/none'), gone, headless)
    with pytest.raises(UnobtainableCheckpointError) as caught:
        create()
    lines = str(caught.value).splitlines()
    assert lines[0] == f'Could not download the weights of {NAME}.'
    assert lines[1].startswith('- hub makers/none: RepositoryNotFoundError: 401')
    assert lines[2] == f'- url {gone.location}: the server answers 404 Not Found.'
    assert lines[3] == '- hub makers/headless: its file has no classifier.'
    assert lines[4].startswith(
        'Try again later, update timm_sk in case the file has moved, or run `timm-sk weights pull '
    )
    assert len(lines) == 5


def test_weights_that_are_not_finite(online, store, row, hub_repo, release, weights, tmp_path):
    """They are refused where they enter: used from the cache, converted from a release, or from a file."""
    broken = {**weights, 'fc.bias': torch.full_like(weights['fc.bias'], math.nan)}
    hub_repo(state_dict=broken)
    content, source = release(state_dict=broken)
    for sources in ((hub_source(),), (source,)):
        row(*sources)
        with pytest.raises(UnobtainableCheckpointError, match=r"'(module\.)?fc\.bias' has NaN or infinite") as caught:
            create()
        assert 'Check the network' not in str(caught.value)
    (tmp_path / 'file').write_bytes(content)
    checkpoint = row(source)
    with pytest.raises(UnreadableCheckpointError, match='has NaN or infinite values'):
        store_file(tmp_path / 'file', checkpoint, shapes_of(checkpoint))
    assert not store.folder(NAME).exists()


def test_source_without_classifier(hub, online, row, hub_repo, release, weights):
    headless = {key: value for key, value in weights.items() if not key.startswith('fc.')}
    hub_repo('makers/headless', state_dict=headless)
    row(hub_source('makers/headless', has_classifier=False), release()[1])
    for kwargs in (dict(num_classes=0), dict(num_classes=3), dict(features_only=True)):
        assert_loaded(create(**kwargs), weights, but='fc.')
    assert not hub.requests['GET', 'files']
    assert_loaded(create(), weights)
    assert hub.requests['GET', 'files'] == 1


def test_stored_checkpoint_without_classifier(hub, online, store, row, release, weights):
    headless = {key: value for key, value in weights.items() if not key.startswith('fc.')}
    row(release('headless.pth', headless, has_classifier=False)[1], release()[1])
    assert_loaded(create(num_classes=0), weights, but='fc.')
    assert not store.origin(NAME).has_classifier
    assert_loaded(create(), weights)
    assert store.origin(NAME).has_classifier


@pytest.mark.parametrize(
    'kwargs', [{}, dict(features_only=True), *(dict(num_classes=n) for n in (0, 3)), dict(in_chans=1)]
)
def test_cfg_is_independent_of_the_source(online, row, release, kwargs):
    row(release()[1])
    model, untrained = create(**kwargs), timm.create_model(NAME, **kwargs)
    assert json.dumps(model.pretrained_cfg) == json.dumps(untrained.pretrained_cfg)
    assert model.default_cfg == untrained.default_cfg


def test_invalid_arguments_before_the_download(hub, online, row, release):
    row(release()[1])
    with pytest.raises(TypeError, match='num_class'):
        create(num_class=3)
    assert not hub.requests


@pytest.mark.deep
@pytest.mark.parametrize('name', [row.name for row in CHECKPOINTS.values() if row.sources])
def test_every_row_is_fetched(name, monkeypatch):
    class AskedForError(Exception):
        pass

    def ask(checkpoint, shapes, **options):
        raise AskedForError(checkpoint.name, options)

    monkeypatch.setattr('timm_sk.models._builder.fetch', ask)
    expected = (name, dict(cache_dir=None, needs_classifier=True))
    with pytest.raises(AskedForError) as caught:
        timm.create_model(name, pretrained=True, device='meta')
    assert caught.value.args == expected


@pytest.mark.parametrize(
    ('overlay', 'error'),
    [
        (dict(file='/mine.safetensors'), 'The checkpoint file /mine.safetensors is missing'),
        (dict(hf_hub_id='some/body'), 'cannot find the requested files|outgoing traffic'),
        (dict(url='http://127.0.0.1:9/mine.pth', hf_hub_id=None), 'refused'),
    ],
)
def test_callers_own_source(monkeypatch, overlay, error):
    monkeypatch.delattr('timm_sk.models._builder.fetch')
    with pytest.raises((CorruptCheckpointError, OSError), match=error):
        timm.create_model('skresnet18.ra_in1k', pretrained=True, pretrained_cfg_overlay=overlay)


def test_fetch_into_another_store(hub, online, store, row, hub_repo, release, weights, tmp_path):
    content, source = release()
    elsewhere = Store(tmp_path / 'elsewhere')
    seen = []
    hub_repo()
    shapes = shapes_of(CHECKPOINTS[NAME])
    for number, checkpoint in enumerate((row(source), row(hub_source()))):
        path = fetch(
            checkpoint, lambda: shapes, store=elsewhere, store_all=True, progress=lambda *numbers: seen.append(numbers)
        )
        assert path == elsewhere.folder(NAME) / 'model.safetensors'
        assert elsewhere.origin(NAME).kind == ('url', 'hub')[number]
        elsewhere.folder(NAME).rename(tmp_path / f'away-{number}')
    assert seen[-1] == (len(content), len(content))
    assert [total for _, total in seen] == [len(content)] * len(seen)
    assert not store.root.exists()


def test_offline_cached(hub, online, store, row, hub_repo, release, weights, monkeypatch, tmp_path):
    hub_repo()
    sources = (hub_source(), release()[1])
    for source in sources:
        row(source)
        create()
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    hub.requests.clear()
    assert_loaded(create(), weights)  # from the store
    store.folder(NAME).rename(store.root / 'away')
    row(sources[0])
    assert_loaded(create(), weights)  # from the client's cache
    assert not hub.requests


def test_offline_uncached(hub, online, store, row, release, monkeypatch):
    row(hub_source(), hub_source('makers/second'), release()[1])
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    start = time.monotonic()
    with pytest.raises(UnobtainableCheckpointError) as caught:
        create()
    assert time.monotonic() - start < 1
    lines = str(caught.value).splitlines()
    assert lines[1:4] == [
        '- hub makers/atto: it is not in the cache of huggingface_hub.',
        '- hub makers/second: it is not in the cache of huggingface_hub.',
        f'- url {hub.endpoint}/files/atto.pth: HF_HUB_OFFLINE forbids the network.',
    ]
    assert lines[4].startswith(f'HF_HUB_OFFLINE is set: unset it, or run `timm-sk weights pull {NAME}` on an')
    assert not hub.requests
    assert not store.root.exists()


@pytest.mark.deep
def test_environment_variables(hub, hub_repo, tmp_path):
    """`HF_ENDPOINT`, `HF_HOME`, `TIMM_SK_HOME`, `HF_HUB_OFFLINE`; and the import brings no HTTP client of ours."""
    hub_repo('timm/skresnet18.ra_in1k', state_dict=fill_model(timm.create_model('skresnet18')).state_dict())
    code = """
import sys, timm
known = set(sys.modules)
import timm_sk
assert not {name.partition('.')[0] for name in set(sys.modules) - known} & {'httpx', 'httpx2', 'requests', 'filelock'}
print(timm.create_model('skresnet18', pretrained=True).fc.bias[0].item())
"""
    environment = {**hub.environment(tmp_path / 'home'), 'TIMM_SK_HOME': str(tmp_path / 'home' / 'sk')}
    first = run_python('-c', code, **environment)
    seen = dict(hub.requests)
    second = run_python('-c', code, **{**environment, 'HF_HUB_OFFLINE': '1'})
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout, second.stderr
    assert seen == dict(hub.requests) == {('HEAD', 'resolve'): 2, ('GET', 'resolve'): 1}
    assert sorted(p.name for p in Path(tmp_path / 'home').iterdir()) == ['hub', 'sk']
