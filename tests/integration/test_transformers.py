"""Published repositories load with transformers' Auto classes, with the names of the classes."""

import json

import pytest
import timm
import torch
from random_weights import fill_model
from subprocesses import run_python

from timm_sk.checkpoints import CHECKPOINTS
from timm_sk.finetune import Config
from timm_sk.finetune.export import export_run
from timm_sk.inference.prediction import example_images
from timm_sk.publishing.hub_folder import golden_inputs, write_golden, write_model
from timm_sk.publishing.release import build_folder
from timm_sk.publishing.upload import Publisher

pytestmark = pytest.mark.integration

COMPARE = """
import json, sys
import torch, transformers
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
import timm_sk
repo = sys.argv[1]
model = transformers.AutoModelForImageClassification.from_pretrained(repo).eval()
golden = load_file(hf_hub_download(repo, 'golden.safetensors'))
with torch.no_grad():
    difference = (model(golden['inputs']).logits - golden['logits']).abs().max().item()
answer = dict(version=transformers.__version__, difference=difference, model=type(model).__name__)
answer['labels'] = {label: model.config.id2label[label] for label in range(3)}
if len(sys.argv) > 2:
    classify = transformers.pipeline('image-classification', model=repo)
    answer['images'] = [classify(path)[0]['label'] for path in sys.argv[2:]]
    answer['processor'] = type(transformers.AutoImageProcessor.from_pretrained(repo)).__name__
print(json.dumps(answer))
"""


def ask_transformers(hub, home, repo, *images, before=''):
    arguments = (repo, *map(str, images))
    done = run_python('-W', 'ignore', '-c', before + COMPARE, *arguments, **hub.environment(home))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_bundled_checkpoint(hub, tmp_path):
    name = 'sknet_atto.digits'
    folder = tmp_path / 'folder'
    folder.mkdir()
    build_folder(CHECKPOINTS[name], folder, repo_id=f'timm-sk/{name}')
    example = (folder / 'README.md').read_text().split('```python\n')[3].split('```')[0]
    assert 'import AutoImageProcessor, AutoModelForImageClassification' in example
    hub.add(f'timm-sk/{name}', folder)
    answer = ask_transformers(hub, tmp_path / 'home', f'timm-sk/{name}', *example_images(name), before=example)
    assert answer['version'].partition('.')[0] == '5'
    assert answer['difference'] <= 1e-5
    assert answer['model'] == 'TimmWrapperForImageClassification'
    assert answer['labels'] == {'0': '0', '1': '1', '2': '2'}
    assert answer['images'] == list('0123456789')
    assert answer['processor'] == 'TimmWrapperImageProcessor'


@pytest.mark.parametrize('name', ['skresnet18.ra_in1k', 'skresnet18_mindcv.mindcv_in1k', 'resnest14d.gluon_in1k'])
def test_imagenet_labels(name, hub, tmp_path):
    """With random weights, and the names and config of the real ones."""
    row = CHECKPOINTS[name]
    model = fill_model(timm.create_model(row.arch)).eval()
    folder = tmp_path / 'folder'
    folder.mkdir()
    write_model(folder, model, row, metadata={})
    inputs = torch.nn.functional.interpolate(golden_inputs(row.input_size), size=96)
    write_golden(folder / 'golden.safetensors', model, inputs, metadata={})
    hub.add(f'timm-sk/{name}', folder)
    answer = ask_transformers(hub, tmp_path / 'home', f'timm-sk/{name}')
    assert answer['difference'] <= 1e-4
    assert [label.split(',')[0] for label in answer['labels'].values()] == ['tench', 'goldfish', 'great white shark']


@pytest.mark.parametrize('changes', [dict(), dict(in_chans=1, gp='catavgmax')])
def test_published_run(changes, hub, api, tmp_path):
    config = Config(tag='pets', licence='mit', **changes)
    channels = config.in_chans or 3
    model = fill_model(
        timm.create_model('sknet_atto', num_classes=3, in_chans=channels, global_pool=config.gp or 'avg')
    )
    halves = (0.5,) * channels
    preprocessing = dict(input_size=(channels, 32, 32), mean=halves, std=halves, interpolation='bicubic', crop_pct=1.0)
    exported = export_run(
        tmp_path / 'export', model, config=config, class_names=['cat', 'dog', 'eel'],
        metrics=dict(val_top1=50.0, val_top5=100.0), dataset='pets', preprocessing=preprocessing,
    )  # fmt: skip
    Publisher(org='me', api=api).publish_folder(exported)
    answer = ask_transformers(hub, tmp_path / 'home', 'me/sknet_atto.pets')
    assert answer['difference'] <= 1e-5
    assert answer['model'] == 'TimmWrapperForImageClassification'
    assert answer['labels'] == {'0': 'cat', '1': 'dog', '2': 'eel'}
