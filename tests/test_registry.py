"""Effects of importing the package on timm's registry."""

import dataclasses

import pytest
import timm
import timm.models
import timm.models.resnest
import timm.models.sknet
from subprocesses import run_python
from variants import ARCHITECTURES, TIMM_NAMES, TIMM_SKNETS

from timm_sk.checkpoints import CHECKPOINTS
from timm_sk.errors import UnknownModelError
from timm_sk.registry import require_model


def test_names():
    assert {*TIMM_NAMES, 'sknet_atto', 'sknet50'} <= set(ARCHITECTURES) <= set(timm.list_models())
    pretrained = timm.list_pretrained()
    assert {name for name in pretrained if name.partition('.')[0] in ARCHITECTURES} == {
        name for name, row in CHECKPOINTS.items() if {source.kind for source in row.sources} - {'manual'}
    }
    assert 'skresnet34.ra_in1k' in pretrained
    assert 'sknet_atto.digits' in pretrained
    assert 'resnest50d_2s2x40d.in1k' in pretrained
    for name in TIMM_NAMES:
        family = 'sknet' if name in TIMM_SKNETS else 'resnest'
        assert name in timm.list_models(module=family)
        assert timm.model_entrypoint(name).__module__ == f'timm_sk.models.{family}'
    for name in ARCHITECTURES:
        assert timm.is_model(name)
        family = next(row.family for row in CHECKPOINTS.values() if row.arch == name)
        assert name in timm.list_models(module=family)
        assert not timm.models.is_model_in_modules(name, {'resnet', 'resnest', 'sknet'} - {family})


@pytest.mark.parametrize('name', TIMM_NAMES)
def test_timms_tags_and_cfgs(name):
    upstream = getattr(timm.models, 'sknet' if name in TIMM_SKNETS else 'resnest').default_cfgs[name]
    tagged = timm.models.get_arch_pretrained_cfgs(name)
    assert list(tagged)[: len(upstream.tags)] == [f'{name}.{tag}' for tag in upstream.tags]
    assert set(tagged) <= set(CHECKPOINTS)
    for tag in upstream.tags:
        hub_id = f'timm/{name}.{tag}' if upstream.cfgs[tag].hf_hub_id else None
        expected = dataclasses.replace(upstream.cfgs[tag], hf_hub_id=hub_id, architecture=name, tag=tag)
        assert tagged[f'{name}.{tag}'] == expected
    assert timm.get_pretrained_cfg(name).tag == upstream.tags[0]
    assert timm.models.is_model_pretrained(name) == bool(upstream.default.has_weights)


def test_import_twice():
    code = """
import timm
before = set(timm.list_models()), set(timm.list_models(include_tags=True))
import timm_sk, importlib, sys
def snapshot():
    names = [*timm.list_models('*sk*', include_tags=True), *timm.list_models('resnest*', include_tags=True)]
    return timm.list_models(), timm.list_pretrained(), [repr(timm.get_pretrained_cfg(n)) for n in names]
first = snapshot()
import timm_sk
for name in [n for n in sys.modules if n.startswith('timm_sk')]:
    del sys.modules[name]
import timm_sk
assert snapshot() == first
assert before[0] <= set(timm.list_models()) and before[1] <= set(timm.list_models(include_tags=True))
"""
    done = run_python('-W', 'error', '-c', code)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


@pytest.mark.deep
def test_tag_of_a_later_timm():
    code = """
import sys, warnings, timm, timm.models
warnings.simplefilter('ignore')
module = sys.modules['timm.models.sknet']
module.default_cfgs.update(timm.models.generate_default_cfgs({
    'skresnet18.new*': dict(hf_hub_id='timm/'), 'skresnet18.ra_in1k': dict(hf_hub_id='timm/')}))
timm.models.register_model(module.skresnet18)
import timm_sk
assert timm.models.get_arch_pretrained_cfgs('skresnet18')['skresnet18.new'].hf_hub_id == 'timm/skresnet18.new'
print(timm.list_models('skresnet18', include_tags=True), timm.get_pretrained_cfg('skresnet18').tag)
"""
    done = run_python('-c', code)
    assert done.stdout == "['skresnet18.new', 'skresnet18.ra_in1k'] new\n", done.stderr


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('skresnet35', r'no model "skresnet35"\. Nearest: .*skresnet34'),
        ('sknet_ato.digits', r'Nearest: .*sknet_atto\.digits'),
        ('skresnet34.typo', r'skresnet34 has no checkpoint "typo"\. It has: skresnet34\.ra_in1k'),
        ('', r'no model ""'),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(UnknownModelError, match=message):
        require_model(name)
