"""The code blocks of README.md and docs/: each runs, or is listed in `NOT_RUN` with a reason."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import typer.main
from drawn_data import drawn, write_folder
from pretrained.readers.tensor_bundle_files import write_bundle
from subprocesses import ROOT
from typer.testing import CliRunner
from upstream_files import filled_weights, write_original

from timm_sk.checkpoints import CHECKPOINTS
from timm_sk.cli import app
from timm_sk.pretrained import Store, bundled_folder
from timm_sk.pretrained.lookup import find_rows

DOCUMENTS = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
STORED = (  # filled, in place of downloads
    *('skresnet34', 'resnest50d', 'resnest50d_2s2x40d', 'sknet50', 'lsknet_t', 'lsknet_s'),
    *('resnest50d.coco_faster_rcnn', 'resnest101e.ade_deeplab'),
    *('skresnet50x1_simclr.linear_in1k', 'skresnet50x1_simclr.ft_in1k'),
)

# Why a block or a line is not run, by a pattern of its first characters; a test that runs the same is named.
NOT_RUN = {
    r'@inproceedings': 'a citation',
    r'cli +commands': 'a map of the folders',
    r'branches = self\.split': 'an excerpt of a method',
    r'pip install|python3 -m pip download': 'installs or downloads packages: tests/test_packaging.py',
    r'printf .*\.git/info': 'changes the clone',
    r'torchrun|TORCH_DISABLE': 'several processes: tests/finetune/test_torchrun.py',
    r'// classify\.cpp|cmake': 'C++: tests/integration/test_deploy_examples.py',
    r'MODEL=|curl': 'serves until it is stopped: tests/integration/test_deploy_examples.py',
    r'timm-sk demo': 'serves until it is stopped: tests/cli/test_cli_demo.py',
    r'timm-sk bench (?!--smoke)': 'measures for minutes to hours, or on a GPU: tests/cli/test_cli_bench.py',
    r'timm-sk finetune (photos|DATA|cifar10)': 'trains for an hour on a CPU: tests/finetune/test_recipes_run.py',
    r'sbatch': 'needs SLURM: tests/finetune/test_slurm.py',
    r"timm-sk finetune '?wds/": 'reads object storage: tests/data_sets/test_remote_shards.py',
    r'timm-sk validate hfds/': 'downloads a data set: tests/data_sets/test_datasets.py',
    r'timm-sk validate (imagenet|cifar10)': 'needs the data set: tests/evaluation/test_validation.py',
    r'timm-sk explain --data (imagenet|cifar10)': 'needs the data set: tests/cli/test_cli_explain.py',
    r'timm-sk run (validate|train)\.py|HF_HUB_OFFLINE=1 .*train\.py': "needs timm's scripts: tests/cli/test_cli.py",
    r'timm-sk weights pull --all': 'downloads everything: tests/pretrained/test_cli_weights.py',
    r'timm-sk weights publish': 'asks the Hub: tests/publishing/test_upload.py',
    r'(DEVICE=cpu .*|OUT=results )benchmarks/gpu\.sh': 'runs the GPU tests: tests/bench/test_gpu_script.py',
    r'python benchmarks/cifar_study\.py': 'trains for two hours, or reads what is not there',
    r'python benchmarks/kernels\.py (--out|--convolutions)': 'measures on a GPU: tests/bench/test_gpu_script.py',
}


class Block(NamedTuple):
    """A code block."""

    document: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f'{self.document.name}:{self.line}'


def code_blocks() -> list[Block]:
    """The fenced blocks of all documents."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding='utf-8')
        for match in re.finditer(r'^```(\w*)\n(.*?)^```$', text, re.DOTALL | re.MULTILINE):
            found.append(Block(document, text[: match.start()].count('\n') + 1, match[1], match[2]))
    return found


def reason_not_to_run(text: str) -> str | None:
    return next((reason for pattern, reason in NOT_RUN.items() if re.match(pattern, text)), None)


def shell_lines(block: Block) -> list[str]:
    """The commands of a block, each in one line; none of a block in another language."""
    if block.language not in ('bash', '') or block.text.startswith('cli '):
        return []
    return [line for line in block.text.replace('\\\n', '').splitlines() if line.strip()]


PYTHON = [block for block in code_blocks() if block.language == 'python' and not reason_not_to_run(block.text)]
SHELL = [block for block in code_blocks() if any(not reason_not_to_run(line) for line in shell_lines(block))]


def cases(blocks: list[Block]) -> list[Any]:
    """Parameters of a test; deploy.md needs the inference engines."""
    tier = {True: pytest.mark.integration, False: pytest.mark.deep}
    return [pytest.param(block, id=block.place, marks=tier[block.document.name == 'deploy.md']) for block in blocks]


@pytest.fixture(scope='session')
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the documents assume: the clone's folders, images, files of a training, downloaded weights."""
    place = tmp_path_factory.mktemp('documents')
    for name in ('weights', 'benchmarks'):
        (place / name).symlink_to(ROOT / name)
    (place / 'path' / 'to').mkdir(parents=True)
    (place / 'path' / 'to' / 'timm_sk').symlink_to(ROOT)
    write_folder(place / 'photos', drawn(6, size=256))  # 18, enough to calibrate int8
    next(iter(drawn(1, size=256).values()))[0].save(place / 'cat.jpg')
    shutil.copytree(bundled_folder('sknet_atto.digits'), place / 'runs' / 'skresnet34-photos' / 'export')
    (place / 'labels.txt').write_text('cat\ndog\n')
    store = Store(place / 'store')
    for row in find_rows(STORED):
        weights = filled_weights(row)
        if not row.sources[0].has_classifier:
            weights = {key: tensor for key, tensor in weights.items() if not key.startswith(('fc.', 'head.'))}
        store.put(row, weights, row.sources[0], sha256=row.sources[0].sha256 or '0' * 64)
    tuned = filled_weights(CHECKPOINTS['sknet50.implus_in1k'])
    tuned |= {key: tuned[key][:2] for key in ('fc.weight', 'fc.bias')}
    torch.save(dict(state_dict=tuned), place / 'last.pth.tar')
    insight = CHECKPOINTS['skresnet50_insight.insight_in1k']
    write_original(filled_weights(insight), insight, insight.sources[0], place / 'sk_resnet50.pth.tar')
    simclr = CHECKPOINTS['skresnet50x1_simclr.ft_in1k']
    write_original(filled_weights(simclr), simclr, simclr.sources[0], place / 'model.ckpt-37535.index')
    head = {}
    for layer, width in enumerate((2048, 2048, 128)):
        scope = f'head_contrastive/nl_{layer}'
        head[f'{scope}/dense/kernel'] = torch.zeros(2048, width)
        norms = ('beta', 'gamma', 'moving_mean', 'moving_variance')
        head |= {f'{scope}/batch_normalization/{leaf}': torch.ones(width) for leaf in norms}
    write_bundle(place / 'model.ckpt-250228', sorted(head.items()))
    return place


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.setenv('TIMM_SK_HOME', str(place / 'store'))
    return place


def test_every_block_is_known() -> None:
    for block in code_blocks():
        runs = block in PYTHON or block in SHELL
        assert runs or all(map(reason_not_to_run, shell_lines(block) or [block.text])), block.place
    texts = [text for block in code_blocks() for text in (block.text, *shell_lines(block))]
    unused = [pattern for pattern in NOT_RUN if not any(re.match(pattern, text) for text in texts)]
    assert unused == []
    named = re.findall(r'tests/[\w/]+\.py', ' '.join(NOT_RUN.values()))
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_options_exist() -> None:
    """Also of the commands that are not run."""
    lines = [line for block in code_blocks() for line in shell_lines(block)]
    commands = [line for line in lines if line.startswith('timm-sk ')]
    assert len(commands) > 40
    for line in commands:
        command, arguments = typer.main.get_command(app), shlex.split(line, comments=True)[1:]
        while hasattr(command, 'resolve_command'):
            _, command, arguments = command.resolve_command(command.make_context(line, [*arguments]), arguments)
        command.make_context(line, arguments)


@pytest.mark.usefixtures('here')
@pytest.mark.parametrize('block', cases(PYTHON))
def test_python(block: Block) -> None:
    exec(compile(block.text, block.place, 'exec'), {'__name__': '__main__'})


@pytest.mark.parametrize('block', cases(SHELL))
def test_shell(block: Block, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('PATH', str(Path(sys.executable).parent), prepend=':')
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    for line in shell_lines(block):
        if reason_not_to_run(line):
            continue
        for written in ('explain', 'report', 'cat', 'shapes', 'sknet50.pets', 'runs/sknet_atto-synthetic'):
            shutil.rmtree(here / written, ignore_errors=True)  # by an earlier block
        if line.startswith('timm-sk '):
            done = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
            assert done.exit_code == 0, (line, done.output, done.exception)
        else:
            subprocess.run(['bash', '-c', line], check=True, timeout=600)
