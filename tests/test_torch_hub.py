"""Entry points of torch.hub, from a clone that is not installed and from a filled cache, without a network."""

import shutil

import pytest
import torch
import torch.hub
from PIL import Image
from subprocesses import ROOT, run_python
from variants import ARCHITECTURES

import timm_sk
from timm_sk.devices import open_device
from timm_sk.errors import NoWeightsError, UnknownModelError
from timm_sk.factory import ready_model, transforms


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    """The files of a clone, without those that an installation adds."""
    folder = tmp_path_factory.mktemp('clone') / 'timm_sk_main'
    for name in ('timm_sk', 'weights'):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(ROOT / 'hubconf.py', folder)
    return folder


def run_isolated(code: str, *arguments: str, **environment: str) -> str:
    """Run code where neither the checkout nor an installed timm_sk can be imported, but only what torch.hub adds."""
    # an editable installation is a path entry, an ordinary one lies in site-packages: hide both
    hide = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == 'timm_sk' and not any('timm_sk_main' in entry for entry in sys.path):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
"""
    done = run_python('-c', hide + code, *arguments, PYTHONPATH='', **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_local_clone(clone):
    code = """
import torch
repo = sys.argv[1]
model = torch.hub.load(repo, 'sknet_atto', source='local', dtype=torch.bfloat16)
weight = model.fc.weight
print(model.training, weight.dtype, weight.device.type == ('cuda' if torch.cuda.is_available() else 'cpu'))
print(model(torch.zeros(1, 3, 32, 32, dtype=weight.dtype, device=weight.device)).shape)
print(sys.modules['timm_sk'].__file__.startswith(repo))
print(torch.hub.load(repo, 'transforms', 'sknet_atto', source='local'))
"""
    state, shape, where, preprocessing = run_isolated(code, str(clone)).split('\n', 3)
    assert state == 'False torch.bfloat16 True'
    assert shape == 'torch.Size([1, 10])'
    assert where == 'True'
    assert 'Resize(size=32, interpolation=bilinear' in preprocessing


@pytest.mark.deep
def test_github_source_from_a_filled_cache(clone, tmp_path):
    shutil.copytree(clone, tmp_path / 'hub' / 'owner_timm_sk_main')
    (tmp_path / 'hub' / 'trusted_list').write_text('owner_timm_sk\n')
    code = """
import torch
options = dict(trust_repo=True, skip_validation=True)
print(*torch.hub.list('owner/timm_sk:main', **options))
print('ra_in1k' in torch.hub.help('owner/timm_sk:main', 'skresnet34', **options))
print('pretrained=False' in torch.hub.help('owner/timm_sk:main', 'skresnet50', **options))
print(torch.hub.load('owner/timm_sk:main', 'sknet_atto', device='cpu', num_classes=4, **options).num_classes)
"""
    names, *facts = run_isolated(code, TORCH_HOME=str(tmp_path)).splitlines()
    assert names.split() == sorted([*ARCHITECTURES, 'transforms'])
    assert facts == ['True', 'True', '4']


def test_entrypoints_are_documented():
    entrypoints = timm_sk.hub_entrypoints()
    assert list(entrypoints) == [*ARCHITECTURES, 'transforms']
    for name, entrypoint in entrypoints.items():
        assert entrypoint.__name__ == name
        assert entrypoint.__doc__.splitlines()[0].endswith('.') or ':' in entrypoint.__doc__.splitlines()[0]
        assert 'Args:' in entrypoint.__doc__
    assert len({entrypoint.__doc__ for entrypoint in entrypoints.values()}) == len(entrypoints)


def test_entrypoint_without_weights():
    create = timm_sk.hub_entrypoints()['skresnet50']
    with pytest.raises(NoWeightsError, match='pretrained=False'):
        create()
    model = create(pretrained=False, num_classes=3)
    assert not model.training
    assert model.num_classes == 3


def test_entrypoint_arguments():
    create = timm_sk.hub_entrypoints()['sknet_atto']
    model = create(tag='digits', device='cpu', dtype=torch.float64, channels_last=True)
    assert model.fc.weight.dtype is torch.float64
    assert model.layer2[0].conv2.paths[0].conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert create(device='cpu').layer2[0].conv2.paths[0].conv.weight.is_contiguous()
    with pytest.raises(UnknownModelError, match=r'has no checkpoint "digit"\. It has: sknet_atto\.digits'):
        create(tag='digit')
    with pytest.raises(ValueError, match="True or False, got 'shapes': name a checkpoint as tag="):
        create('shapes')
    assert create(tag='shapes', device='cpu').num_classes == 8
    with pytest.raises(TypeError, match='num_class'):
        create(num_class=3)


def test_devices():
    assert open_device('cpu') == torch.device('cpu')
    assert open_device().type in ('cpu', 'cuda', 'mps')
    assert next(ready_model('sknet_atto').parameters()).device.type == open_device().type
    with pytest.raises(ValueError, match='Invalid device "toaster": expected cpu, cuda, cuda:<index> or mps'):
        open_device('toaster')
    for device in ('meta', 'xpu'):
        with pytest.raises(ValueError, match=f'Invalid device "{device}": expected cpu'):
            open_device(device)
    with pytest.raises(ValueError, match='Device "cuda:99" not found: this machine has'):
        open_device('cuda:99')


def test_transforms_of_any_image_mode():
    grey = Image.new('L', (40, 40), 51)
    for mode in ('L', 'P', 'RGBA', 'CMYK', '1', 'LA'):
        assert transforms('sknet_atto')(grey.convert(mode)).shape == (3, 32, 32)
    assert transforms('sknet_atto')(grey).unique().tolist() == pytest.approx([51 / 255 * 2 - 1])
    assert transforms('sknet_atto')(Image.new('I;16', (40, 40), 51 * 257)).equal(transforms('sknet_atto')(grey))
    exif = grey.getexif()
    exif[0x0112] = 3
    grey.paste(255, (0, 0, 40, 20))  # which is below as the image is seen
    assert transforms('sknet_atto')(grey)[0, -1].tolist() == pytest.approx([1] * 32)
    with pytest.raises(UnknownModelError, match='"local-dir:x" has no preprocessing in the registry'):
        transforms('local-dir:x')
