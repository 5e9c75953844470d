"""Help, version, completion and usage errors without importing torch; exit codes, streams, `--quiet` and colors."""

import json
import shlex
import signal
import subprocess
import sys

import pytest
import typer.main
from subprocesses import ROOT, run_python
from typer.testing import CliRunner

from timm_sk.bench.matrix import FORMS, GRAPH
from timm_sk.checkpoints import CHECKPOINTS
from timm_sk.cli import app
from timm_sk.cli.bench import FORMS_HELP
from timm_sk.console import log, log_error, progress_bar, set_quiet
from timm_sk.finetune.recipes import recipe_names
from timm_sk.inference.graph_export import SUFFIXES
from timm_sk.inference.int8 import CALIBRATION_IMAGES
from timm_sk.pretrained import bundled_folder
from timm_sk.publishing.hub_folder import WEIGHTS

RUN = 'from timm_sk_cli import main; main()'
RUN_ALL = """
import contextlib, io, json, sys
from timm_sk_cli import main
texts = []
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.redirect_stderr(text):
        try:
            main()
        except SystemExit as end:
            code = end.code
    texts.append([code, text.getvalue()])
print(json.dumps(dict(texts=texts, heavy=[name for name in ('torch', 'timm', 'numpy') if name in sys.modules])))
"""


def leaves(command=None, path=()):
    """All commands with the words that call them."""
    command = command or typer.main.get_command(app)
    for name, inner in getattr(command, 'commands', {}).items():
        yield from leaves(inner, (*path, name))
    if not hasattr(command, 'commands'):
        yield path, command


def cli(*arguments, **environment):
    """Run the console script's function in a subprocess."""
    return run_python('-c', RUN, *map(str, arguments), **environment)


def completed(line, **environment):
    words = dict(_TIMM_SK_COMPLETE='complete_bash', COMP_WORDS=line, COMP_CWORD=str(len(line.split(' ')) - 1))
    code = f'import sys; sys.argv[0] = "timm-sk"\ntry:\n    {RUN}\nfinally:\n    assert "torch" not in sys.modules'
    return run_python('-c', code, **words, **environment).stdout.split()


def test_help_without_torch():
    calls = [[*path, '-h'] for path, _ in leaves()]
    calls += [['--help'], ['-h'], ['weights', '--help'], ['-V'], ['--version'], ['list', '--no-such'], ['lits']]
    assert ['weights', 'pull', '-h'] in calls
    done = run_python('-c', RUN_ALL, json.dumps(calls))
    found = json.loads(done.stdout)
    assert found['heavy'] == [], done.stderr
    for arguments, (code, text) in zip(calls, found['texts'], strict=True):
        real = CliRunner().invoke(app, arguments, prog_name='timm-sk', env={'COLUMNS': '200'})
        assert (code, text) == (real.exit_code, real.output), arguments
        assert code == (2 if arguments[0] == 'lits' or '--no-such' in arguments else 0)
    assert found['texts'][-3][1] == '0.1.0\n'


def test_help_texts():
    for path, command in leaves():
        title, *examples = command.epilog.split('\n\n')
        assert title == '[bold]Examples[/bold]'
        assert examples
        for example in examples:
            words = shlex.split(example)
            assert words[: len(path) + 1] == ['timm-sk', *path]
            command.make_context(example, words[len(path) + 1 :])
    forms = FORMS_HELP.removeprefix('Some of ').partition(';')[0].split(', ')
    with_graph = [form + GRAPH for form in forms if form not in ('merged', 'max_autotune')]
    assert (*forms, *with_graph) == FORMS
    helps = {(*path, option.name): option.help for path, command in leaves() for option in command.params}
    assert helps['export', 'format'].startswith(', '.join(SUFFIXES) + ';')
    assert f'at most {CALIBRATION_IMAGES} ' in helps['export', 'calibrate']
    assert f'Folder with {WEIGHTS}, ' in helps['weights', 'card', 'folder']


@pytest.mark.deep
def test_completion():
    architectures = dict.fromkeys(row.arch for row in CHECKPOINTS.values())
    trained = [name for name, row in CHECKPOINTS.items() if row.sources]
    for words, begin, names in (
        ('predict --model', 'skresnet34', [*architectures, *trained]),
        ('finetune photos --model', 'resnest50d', [*architectures, *trained]),
        ('weights pull sknet50', 'sknet_atto', [*architectures, *trained]),
        ('weights convert file --to', 'sknet50', trained),
        ('weights package --arch', 'resnest50d', architectures),
        ('finetune --config', 'sknet', recipe_names()),
        ('weights', 'p', ['pull', 'package', 'publish']),
    ):
        expected = [name for name in names if name.startswith(begin)]
        assert len(expected) > 1
        assert completed(f'timm-sk {words} {begin}') == expected
    for shell in ('bash', 'zsh', 'fish'):
        script = cli('--show-completion', shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION='1').stdout
        assert f'_TIMM_SK_COMPLETE=complete_{shell}' in script


@pytest.mark.deep
def test_exit_codes(tmp_path):
    """Of the console script; its commands have the package's models."""
    done = cli('predict', '--json', '--quiet', '-h')
    assert (done.returncode, done.stderr) == (0, '')
    done = cli('list', 'sknet_atto', '--json')
    assert (done.returncode, json.loads(done.stdout)[0]['name']) == (0, 'sknet_atto.digits'), done.stderr
    assert cli('list', 'nothing').returncode == 1
    assert cli('predict', '--topk', '0').returncode == 2
    assert cli().returncode == 2
    (tmp_path / 'wait.py').write_text(
        'import time, timm, timm_sk\n'
        'print(timm.model_entrypoint("skresnet18").__module__, timm_sk.__version__, flush=True)\n'
        'time.sleep(200)\n'
    )
    environment = dict(PYTHONPATH=str(ROOT), PATH='')
    started = subprocess.Popen(
        [sys.executable, '-c', RUN, 'run', 'wait.py'], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    with started as process:
        assert process.stdout.readline() == 'timm_sk.models.sknet 0.1.0\n'
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130


@pytest.mark.deep
def test_results_on_stdout_and_notes_on_stderr(tmp_path):
    """Notes are absent with --quiet, before or after the command; results and errors are the same."""
    checkpoint = str(bundled_folder('sknet_atto.digits') / 'model.safetensors')
    name = 'sknet_atto.digits'
    for arguments, note, result in (
        (['predict', '--topk', '99'], 'sknet_atto.digits has 10 classes', '9.png'),
        (['weights', 'list', 'sknet_atto'], '2 checkpoints. Local store: ', name),
        (['weights', 'convert', checkpoint, '--to', name], 'Load it with timm.', name),
    ):
        environment = dict(TIMM_SK_HOME=str(tmp_path), COLUMNS='200')
        done = CliRunner().invoke(app, arguments, env=environment)
        assert (done.exit_code, note in done.stderr, note in done.stdout) == (0, True, False), done.output
        assert result in done.stdout
        for quiet in (['--quiet', *arguments], [*arguments, '-q']):
            silent = CliRunner().invoke(app, quiet, env=environment)
            assert (silent.exit_code, silent.stdout, silent.stderr) == (0, done.stdout, '')
    failed = CliRunner().invoke(app, ['-q', 'list', 'nothing'])
    assert (failed.exit_code, failed.stdout) == (1, '')
    assert failed.stderr.startswith('timm-sk: No model matches "nothing".')


@pytest.mark.deep
def test_quiet(capsys):
    set_quiet(True)
    try:
        with progress_bar('bar', 2) as update:
            log('note')
            log_error('wrong')
            update(1)
    finally:
        set_quiet(False)
    assert capsys.readouterr().err == 'timm-sk: wrong\n'
    log('note')
    assert capsys.readouterr().err == 'note\n'
    for option, shown in (('--topk=3', True), ('-q', False)):
        done = cli('predict', option, TTY_COMPATIBLE='1')
        assert (done.returncode, 'Classifying' in done.stderr) == (0, shown)


@pytest.mark.deep
def test_no_color():
    terminal = dict(FORCE_COLOR='1', TERM='xterm-256color')
    color = '\x1b[1;36m'
    assert color in cli('-h', **terminal).stdout
    plain = cli('-h', NO_COLOR='1', **terminal).stdout
    assert '\x1b[3' not in plain
    assert ';3' not in plain
