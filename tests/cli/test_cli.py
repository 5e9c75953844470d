"""The command line: list, predict, run."""

import json
import re
import shutil

import pytest
from PIL import Image
from subprocesses import ROOT, free_port, run_python
from typer.testing import CliRunner
from variants import ARCHITECTURES

from timm_sk.checkpoints import CHECKPOINTS
from timm_sk.cli import app
from timm_sk.cli.chosen_images import NO_MODEL
from timm_sk.cli.main import MODELS_OF_EXAMPLES, NEXT
from timm_sk.inference.prediction import example_images
from timm_sk.models.listing import markdown
from timm_sk.pretrained import bundled_folder
from timm_sk.pretrained.lookup import search_rows

MODEL = ['--model', 'sknet_atto.digits']
TRACEBACK = 'Traceback (most recent call last):'
EXAMPLES = example_images('sknet_atto.digits')


def timm_sk(*arguments, **kwargs):
    """Run the command line in a subprocess."""
    return run_python('-W', 'error', '-m', 'timm_sk', *map(str, arguments), **kwargs)


def invoke(*arguments):
    """Run the command line in this process, which is faster."""
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_list():
    done = invoke('list', 'skres*')  # all of them are in the table of docs/models.md
    assert done.exit_code == 0, done.stderr
    assert all((name in done.stdout) == name.startswith('skres') for name in ARCHITECTURES)
    row = ['skresnext50_32x4d', 'ra_in1k', '27.48', 'M', '4.463', '3x224x224', 'hub', '80.17']
    assert row in [line.split() for line in done.stdout.splitlines()]
    on_terminal = CliRunner().invoke(app, ['list'], env={'COLUMNS': '70', 'TTY_COMPATIBLE': '1'}).stdout
    assert '…' not in on_terminal
    documents = {document['name']: document for document in json.loads(invoke('list', '--json').stdout)}
    assert [*documents] == [*CHECKPOINTS]
    expected = dict(params=27479784, input_size=[3, 224, 224], weights='hub', top1=80.168)
    assert documents['skresnext50_32x4d.ra_in1k'].items() >= expected.items()


def test_list_filter():
    assert {row.arch for row in search_rows('net50d')} == {'skresnet50d'}
    assert {row.arch for row in search_rows('skresnet?4')} == {'skresnet34'}
    assert {row.arch for row in search_rows('*.ra_in1k')} == {'skresnet18', 'skresnet34', 'skresnext50_32x4d'}
    assert 'Nearest: skresnet34, ' in invoke('list', 'skresnet43').stderr
    done = invoke('list', 'nothing')
    assert (done.exit_code, done.stderr) == (1, 'timm-sk: No model matches "nothing". `timm-sk list` shows all.\n')


def test_documentation_has_generated_table():
    table = markdown(search_rows())
    assert table in (ROOT / 'docs' / 'models.md').read_text()
    assert invoke('list', '--markdown', 'sknet_atto').stdout.splitlines()[-1] in table


def test_predict_examples():
    done = timm_sk('predict')
    assert done.returncode == 0, done.stderr
    assert done.stderr == f'{NEXT}\n'
    *digits, cat, coffee = [line.split()[:3] for line in done.stdout.splitlines() if '.png' in line]
    assert digits == [[f'{digit}.png', digit, digit] for digit in '0123456789']
    assert (cat, coffee[:2]) == (['cat.png', 'cat', 'cat'], ['other-coffee.png', 'other-coffee'])
    assert 'sknet_atto.digits was trained on handwritten digits' in done.stdout
    assert 'sknet17_1x32d.cifar10 was trained on photographs' in done.stdout


def test_model_must_be_named_for_images():
    for command in (['predict', EXAMPLES[7]], ['explain', EXAMPLES[7]], ['explain', '--data', EXAMPLES[7].parent]):
        done = invoke(*command)
        assert (done.exit_code, done.stdout) == (1, '')
        assert done.stderr == f'timm-sk: {NO_MODEL}\n'


def test_model_of_a_folder(tmp_path, monkeypatch):
    shutil.copytree(bundled_folder('sknet_atto.digits'), tmp_path / 'runs' / 'export')
    shutil.copytree(bundled_folder('sknet_atto.digits'), tmp_path / 'sknet_atto.shapes')  # the checkpoint wins
    monkeypatch.chdir(tmp_path)
    for name, label in (('runs/export', '7'), ('sknet_atto.shapes', None)):
        (document,) = json.loads(invoke('predict', EXAMPLES[7], '--model', name, '--json', '--topk', 1).stdout)
        assert (document['predictions'][0]['label'] == '7') == (label == '7')
    assert 'has no example images' in invoke('predict', '--model', 'runs/export').stderr


@pytest.mark.parametrize('config', ['[1]', '{', '{"model_args": [1], "architecture": "sknet_atto"}', None])
def test_damaged_folder_of_a_model(tmp_path, config):
    if config is None:
        shutil.copy(bundled_folder('sknet_atto.digits') / 'config.json', tmp_path)
        (tmp_path / 'pytorch_model.bin').write_bytes(b'no')
    else:
        (tmp_path / 'config.json').write_text(config)
    done = invoke('predict', EXAMPLES[7], '--model', tmp_path)
    assert (done.exit_code, done.stderr.count('\n')) == (1, 1)
    assert done.stderr.startswith(f'timm-sk: {tmp_path} cannot be loaded: ')
    assert 'weights_only' not in done.stderr


def test_predict_json():
    done = invoke('predict', *MODEL, '--json', '--topk', 3, EXAMPLES[7], '--device', 'cpu')
    (document,) = json.loads(done.stdout)
    assert document['file'] == str(EXAMPLES[7])
    assert [len(document['predictions']), document['predictions'][0]['label']] == [3, '7']
    probabilities = [prediction['probability'] for prediction in document['predictions']]
    assert probabilities == sorted(probabilities, reverse=True)
    assert probabilities[0] > 0.5
    done = invoke('predict', '--json', '--topk', 99)
    notes = [f'{name} has 10 classes: --topk 99 shows all of them.' for name in MODELS_OF_EXAMPLES]
    assert done.stderr.splitlines() == notes
    everything = json.loads(done.stdout)
    assert [row['truth'] for row in everything] == [*'0123456789', 'cat', 'other-coffee']
    for row in everything:
        assert len(row['predictions']) == 10
        assert sum(prediction['probability'] for prediction in row['predictions']) == pytest.approx(1, abs=1e-5)


def test_predict_folders_and_unreadable_files(tmp_path):
    (tmp_path / 'sub').mkdir()
    shutil.copy(EXAMPLES[4], tmp_path / 'sub' / 'four.png')
    Image.open(EXAMPLES[5]).save(tmp_path / 'five.webp', lossless=True)
    (tmp_path / 'bad.png').write_bytes(EXAMPLES[0].read_bytes()[:60])
    (tmp_path / 'empty.jpg').touch()
    done = invoke('predict', *MODEL, '--json', tmp_path, tmp_path / 'gone.png', tmp_path / 'sub' / '*.png')
    assert done.exit_code == 1
    documents = json.loads(done.stdout)
    best = [d['predictions'][0]['label'] if 'predictions' in d else None for d in documents]
    assert [d['file'][len(str(tmp_path)) + 1 :] for d in documents] == [
        'bad.png',
        'empty.jpg',
        'five.webp',
        'sub/four.png',
        'gone.png',
        'sub/four.png',
    ]
    assert best == [None, None, '5', '4', None, '4']
    errors = done.stderr.splitlines()
    assert [line.split(': ')[1] for line in errors] == [str(tmp_path / n) for n in ('bad.png', 'empty.jpg', 'gone.png')]
    shown = invoke('predict', *MODEL, tmp_path / 'bad.png', tmp_path / 'five.webp')
    assert shown.exit_code == 1
    assert 'five.webp' in shown.stdout
    assert 'bad.png' not in shown.stdout
    assert 'bad.png: ' in shown.stderr


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--model', 'skresnet35'], 'There is no model "skresnet35". Nearest: '),
        (['--model', 'skresnet34.nope'], 'skresnet34 has no checkpoint "nope". It has: skresnet34.ra_in1k.'),
        (['--model', 'skresnet50', 'x.png'], 'no pretrained weights of skresnet50.untrained: `timm-sk weights list`'),
        (['--model', 'resnet50', 'x.png'], 'resnet50 cannot be loaded: the hub does not answer'),
        (['--model', 'hf-hub:a/b', 'x.png'], 'hf-hub:a/b cannot be loaded: the hub does not answer'),
        (['--model', 'sknet_atto', 'https://a.b/c.png'], 'https://a.b/c.png: addresses are not supported.'),
        (['--model', 'sknet_atto', 'gone.png'], 'gone.png: no such file.'),
        (['--model', 'local-dir:/nowhere', 'x.png'], '/nowhere/config.json'),
        (['--model', 'somebody/model'], "Use 'hf-hub:somebody/model'"),
        (['--model', 'skresnet34'], 'skresnet34 has no example images'),
        (['--device', 'toaster'], 'Invalid device "toaster": expected cpu, cuda, cuda:<index> or mps'),
        (['--model', 'local-dir:bare', 'x.png'], 'local-dir:bare cannot be loaded: KeyError'),
        (['--model', 'local-dir:torn', 'x.png'], 'local-dir:torn cannot be loaded: SafetensorError'),
        (['--model', 'skresnet34', 'x.png'], 'Could not download the weights of skresnet34.ra_in1k.'),
    ],
)
def test_predict_errors(arguments, message, tmp_path, monkeypatch):
    for folder in ('bare', 'torn'):
        shutil.copytree(bundled_folder('sknet_atto.digits'), tmp_path / folder)
    (tmp_path / 'bare' / 'config.json').write_text('{}')
    (tmp_path / 'torn' / 'model.safetensors').write_bytes(b'torn')
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ['predict', *arguments])
    assert (done.exit_code, done.stdout) == (1, '')
    assert message in done.stderr
    assert done.stderr.startswith('timm-sk: ')
    assert done.stderr.count('\n') == 1
    assert 'pretrained=' not in done.stderr
    assert 'Errno 2]' not in done.stderr


@pytest.mark.deep
@pytest.mark.parametrize('name', ['resnet50', 'hf-hub:a/b'])
def test_hub_that_does_not_answer(name):
    closed = f'http://127.0.0.1:{free_port()}'
    done = timm_sk('predict', EXAMPLES[7], '--model', name, HF_HUB_OFFLINE='0', HF_ENDPOINT=closed)
    assert (done.returncode, done.stderr.count('\n')) == (1, 1)
    assert done.stderr.startswith(f'timm-sk: {name} cannot be loaded: the hub does not answer (')


@pytest.mark.deep
def test_predict_progress_bar(tmp_path):
    shutil.copy(EXAMPLES[1], tmp_path / ('x' * 90 + '1.png'))
    shutil.copy(EXAMPLES[2], tmp_path / ('x' * 90 + '2.png'))
    done = timm_sk('predict', *MODEL, tmp_path, COLUMNS='80', TTY_COMPATIBLE='1')
    assert 'Classifying' in done.stderr
    plain = re.sub(r'\x1b\[[0-9;]*m', '', done.stdout)
    shown = ''.join(line.strip().split('  ')[0] for line in plain.splitlines())
    assert 'x1.png' in shown
    assert 'x2.png' in shown


@pytest.mark.deep
def test_run_arguments_and_exit_code(tmp_path):
    (tmp_path / 'beside.py').write_text('value = 42')
    (tmp_path / 'script.py').write_text(
        'import sys, timm, beside\n'
        'print(sys.argv[1:], beside.value, __name__, timm.model_entrypoint("skresnet18").__module__)\n'
        'sys.exit(int(sys.argv[1]))\n'
    )
    done = timm_sk('run', 'script.py', '3', '--help', '-x', '--model=a', cwd=tmp_path)
    assert done.stdout == "['3', '--help', '-x', '--model=a'] 42 __main__ timm_sk.models.sknet\n", done.stderr
    assert done.returncode == 3


def test_run_errors(tmp_path):
    (tmp_path / 'broken.py').write_text('def main():\n    raise EOFError("mine")\n\nmain()\n')
    done = invoke('run', tmp_path / 'broken.py')
    frame = f'  File "{tmp_path}/broken.py", line '
    assert (done.exit_code, done.stderr.splitlines()[:2]) == (1, [TRACEBACK, f'{frame}4, in <module>'])
    assert done.stderr.endswith('EOFError: mine\n')
    assert done.stderr.count('  File ') == 2
    (tmp_path / 'invalid.py').write_text('1 +\n')
    done = invoke('run', tmp_path / 'invalid.py')
    assert (done.exit_code, done.stderr.splitlines()[0]) == (1, f'{frame}1'.replace('broken', 'invalid'))
    assert invoke('run', tmp_path / 'gone.py').stderr == f'timm-sk: No such file: {tmp_path}/gone.py\n'
