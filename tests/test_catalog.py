"""The lists of models and checkpoints, and the facts about a checkpoint."""

import hashlib

import pytest
import timm
from upstream_files import filled_weights
from variants import ARCHITECTURES

import timm_sk
from timm_sk.checkpoints import CHECKPOINTS
from timm_sk.errors import NoWeightsError, UnknownModelError
from timm_sk.pretrained import Store, bundled_folder

NAME = 'sknet_atto.digits'


def test_lists_and_description():
    assert {*timm_sk.list_models()} == {*ARCHITECTURES}
    assert timm_sk.list_models('sknet50') == ['sknet50', 'sknet50_3path', 'sknet50_holocron', 'sknet50_syt2']
    assert timm_sk.list_models('sknet50*', pretrained=True) == ['sknet50', 'sknet50_holocron', 'sknet50_syt2']
    assert timm_sk.list_models('resnest*.imgclsmob_in1k') == [
        name.partition('.')[0] for name in CHECKPOINTS if name.endswith('.imgclsmob_in1k')
    ]
    assert timm_sk.list_models('nothing') == timm_sk.list_checkpoints('nothing') == []
    assert timm_sk.list_checkpoints() == [name for name, row in CHECKPOINTS.items() if row.sources]
    assert timm_sk.list_checkpoints('sknet_atto') == [NAME, 'sknet_atto.shapes']
    assert set(timm.list_pretrained('sk*')) & set(CHECKPOINTS) <= set(timm_sk.list_checkpoints('sk*'))

    found = timm_sk.describe_checkpoint('sknet_atto')
    assert (found.name, found.arch, found.licence, found.state) == (NAME, 'sknet_atto', 'apache-2.0', 'bundled')
    assert (found.top1, found.num_classes, found.mean, found.stored) == (100.0, 10, (0.5, 0.5, 0.5), None)
    assert found.params == sum(parameter.numel() for parameter in timm.create_model(NAME).parameters())
    digest = hashlib.sha256((bundled_folder(NAME) / 'model.safetensors').read_bytes()).hexdigest()
    assert found.sources[0].published_hash == ('sha256', digest)
    lines = str(found).splitlines()
    assert lines[0].split() == ['checkpoint', NAME]
    assert any(line.startswith('licence') and line.endswith(' apache-2.0') for line in lines)
    assert digest in str(found)
    assert f'{found.params:,} parameters, {found.macs:,} multiply-adds' in str(found)

    with pytest.raises(UnknownModelError, match=r'Unknown checkpoint "skresnet35"\. Nearest: .*skresnet34'):
        timm_sk.describe_checkpoint('skresnet35')
    with pytest.raises(NoWeightsError, match=r'skresnet50\.untrained is an untrained model'):
        timm_sk.describe_checkpoint('skresnet50')


@pytest.mark.deep
def test_every_checkpoint_has_a_description():
    for name in timm_sk.list_checkpoints():
        found, row = timm_sk.describe_checkpoint(name), CHECKPOINTS[name]
        assert all(getattr(found, field) == value for field, value in vars(row).items())
        assert found.params > 0
        assert found.macs > found.params / 20
        assert (row.licence or 'not stated') in str(found)


@pytest.mark.deep
def test_stored_checkpoint():
    assert timm_sk.describe_checkpoint('skresnet18').state == 'on the hub'
    row = CHECKPOINTS['skresnet18.ra_in1k']
    Store().put(row, filled_weights(row), row.sources[0], sha256='a' * 64)
    found = timm_sk.describe_checkpoint('skresnet18')
    assert (found.state, found.stored.kind, found.stored.sha256) == ('stored', 'hub', 'a' * 64)
    assert 'sha256 of the original ' + 'a' * 64 in str(found)
