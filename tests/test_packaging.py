"""Wheel and sdist have the bundled weights; importing loads few packages."""

import tarfile
import zipfile

import pytest
from subprocesses import ROOT, run_python

import timm_sk
from timm_sk.checkpoints import CHECKPOINTS
from timm_sk.finetune.recipes import recipe_names

pytestmark = pytest.mark.deep

EXAMPLES = {
    'sknet17_1x32d.cifar10': ('cat', 'other-coffee'),
    **{name: CHECKPOINTS[name].label_names for name in ('sknet_atto.digits', 'sknet_atto.shapes')},
}
BUNDLED_FILES = {
    f'{name}/{file}'
    for name, row in CHECKPOINTS.items()
    if row.bundled
    for file in (
        *('README.md', 'config.json', 'golden.safetensors', 'model.safetensors', 'recipe.json'),
        *(f'examples/{stem}.png' for stem in EXAMPLES[name]),
    )
}


def build(kind, folder):
    """Build a wheel or an sdist."""
    pytest.importorskip('hatchling')
    code = f'import hatchling.build; print(hatchling.build.build_{kind}({str(folder)!r}))'
    done = run_python('-c', code, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.split()[-1]


def test_wheel_works_from_any_folder(tmp_path):
    with zipfile.ZipFile(build('wheel', tmp_path)) as archive:
        prefix = 'timm_sk/_bundled/'
        assert {name.removeprefix(prefix) for name in archive.namelist() if name.startswith(prefix)} == BUNDLED_FILES
        data = ['py.typed', 'publishing/model_card.md', 'models/costs.csv']
        data += [f'demo/{name}' for name in ('baselines.csv', 'keyboard.js', 'share.png', 'style.css')]
        data += [f'finetune/recipes/{name}.yaml' for name in recipe_names()]
        assert recipe_names()
        assert {f'timm_sk/{name}' for name in data} <= set(archive.namelist())
        assert not any(name.endswith('train.py') for name in archive.namelist())
        archive.extractall(tmp_path / 'site')
    code = """
import timm, timm_sk
assert timm_sk.__file__.startswith(__import__('sys').argv[1])
print(timm.create_model('sknet_atto.digits', pretrained=True).pretrained_cfg['file'])
"""
    site = str(tmp_path / 'site')
    done = run_python('-W', 'error', '-c', code, site, PYTHONPATH=site, cwd=tmp_path)
    assert done.stdout.strip() == f'{site}/timm_sk/_bundled/sknet_atto.digits/model.safetensors', done.stderr
    code = 'import timm_sk_cli; timm_sk_cli.main()'
    done = run_python('-c', code, '--version', PYTHONPATH=site, cwd=tmp_path)
    assert done.stdout == f'{timm_sk.__version__}\n', done.stderr


def test_sdist_has_weights_and_test_data(tmp_path):
    with tarfile.open(build('sdist', tmp_path)) as archive:
        names = {member.partition('/')[2] for member in archive.getnames()}
    assert {f'weights/{file}' for file in BUNDLED_FILES} <= names
    assert {'hubconf.py', 'LICENSE', 'tests/data/digits_heldout.safetensors', 'weights/train.py'} <= names


def test_imported_dependencies():
    code = 'import timm, sys; before = set(sys.modules); import timm_sk; print(*set(sys.modules) - before)'
    loaded = run_python('-c', code).stdout.split()
    assert 'timm_sk.models.sknet' in loaded
    assert 'timm_sk.bench' not in loaded
    assert not {'typer', 'rich', 'matplotlib', 'triton', 'gradio'} & {name.partition('.')[0] for name in loaded}
    hubconf = run_python('-c', 'import hubconf; print(*hubconf.dependencies)', cwd=ROOT).stdout.split()
    assert hubconf == ['torch', 'timm', 'huggingface_hub', 'safetensors']


def test_version():
    assert timm_sk.__version__ == '0.1.0'
    assert f'## {timm_sk.__version__}' in (ROOT / 'CHANGELOG.md').read_text()
