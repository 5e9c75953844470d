"""`timm-sk explain`: its folder, and its errors, which leave nothing behind."""

import csv
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import timm
from drawn_data import drawn, write_folder
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from timm_sk import console, explain
from timm_sk.cli import app
from timm_sk.cli import explain as cli_explain
from timm_sk.explain import figures
from timm_sk.explain.report import PAGE
from timm_sk.inference.prediction import example_images

EXAMPLES = example_images('sknet_atto.shapes')
UNITS = ['SK_2_1', 'SK_3_1', 'SK_4_1', 'SK_5_1']


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the command with a folder to write; gives the exit code and both outputs."""
    logged = io.StringIO()
    monkeypatch.setattr(console, 'err', Console(file=logged))

    def run(*arguments, out='out'):
        named = [] if '--model' in arguments else ['--model', 'sknet_atto.shapes']
        done = CliRunner().invoke(app, ['explain', *map(str, arguments), *named, '--out', str(tmp_path / out)])
        return done.exit_code, done.stdout, logged.getvalue()

    return run


class Page(HTMLParser):
    """The tags, attributes and texts of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)


def rows_of(folder):
    with (folder / 'numbers.csv').open(newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def require_self_contained(folder):
    """Check that a page has the folder's figures with alternative texts, and no address."""
    page = Page(folder / PAGE)
    shown = [attributes for tag, attributes in page.tags if tag == 'img']
    assert len(shown) == len(list(folder.glob('*.png')))
    assert all(image['src'].startswith('data:image/png;base64,') and len(image['alt']) > 40 for image in shown)
    addresses = [value for _, attributes in page.tags for name, value in attributes.items() if name in ('src', 'href')]
    assert all(address.startswith('data:') for address in addresses)
    assert not {'script', 'link'} & {tag for tag, _ in page.tags}
    assert 'http' not in re.sub(r'base64,[^"]*', '', (folder / PAGE).read_text(encoding='utf-8'))
    for figure in folder.glob('*.png'):
        with Image.open(figure) as drawing:
            assert np.asarray(drawing.convert('L')).std() > 5  # not blank
    return page


def test_images(run, tmp_path):
    name = 'a <b> & "c".png'
    Image.open(EXAMPLES[0]).save(tmp_path / name)
    code, printed, logged = run(tmp_path / name, EXAMPLES[4], '--scales', '1,2', '--units', 'SK_3_1,SK_5_1')
    assert (code, logged) == (0, '')
    folder = tmp_path / 'out'
    assert printed.split()[-1] == str(folder / PAGE)
    assert sorted(path.name for path in folder.iterdir()) == [
        '01-a--b-----c-channels.png',
        '01-a--b-----c-depth.png',
        '02-ring-channels.png',
        '02-ring-depth.png',
        'depth.png',
        'numbers.csv',
        'report.html',
    ]
    page = require_self_contained(folder)
    assert name in page.texts

    rows = rows_of(folder)
    model = timm.create_model('sknet_atto.shapes', pretrained=True).eval()
    images = [Image.open(path).convert('RGB') for path in (EXAMPLES[0], EXAMPLES[4])]
    expected = explain.explain_images(model, images, scales=(1, 2), units=['SK_3_1', 'SK_5_1'])
    assert len(rows) == 2 * 2 * (3 * 4 + 2 * (48 + 112))
    quantities = dict(
        difference=expected.differences,
        expected_kernel_extent=expected.expected_kernel_extents,
        receptive_field=expected.receptive_fields,
    )
    for row in rows:
        p, s = [name, 'ring.png'].index(row['image']), ['1', '2'].index(row['scale'])
        if row['quantity'] == 'attention':
            branch, channel = int(row['branch']) - 1, int(row['channel']) - 1
            assert row['kernel_extent'] == ('3', '5')[branch]
            value = expected.attention[row['unit']][p, s, branch, channel]
        else:
            value = quantities[row['quantity']][p, s, UNITS.index(row['unit'])]
        assert float(row['value']) == pytest.approx(value, abs=1e-4)


def test_example_images(run, tmp_path, monkeypatch):
    monkeypatch.setattr('timm_sk.explain.report.MAX_DRAWN', 1)
    code, _, _ = run('--scales', '1')
    assert code == 0
    assert len(list((tmp_path / 'out').glob('*.png'))) == 2 + 1
    assert '7 more images without figures; their numbers are in numbers.csv.' in Page(tmp_path / 'out' / PAGE).texts
    assert {row['image'] for row in rows_of(tmp_path / 'out')} == {path.name for path in EXAMPLES}


def test_data_set_by_class(run, tmp_path):
    data = write_folder(tmp_path / 'data', drawn(3, size=40))
    code, _, logged = run('--data', data, '--by-class', '--scales', '1,1.5', '--workers', 0, '--batch-size', 4)
    assert (code, logged) == (0, '')
    folder = tmp_path / 'out'
    assert sorted(path.name for path in folder.iterdir()) == ['classes.png', 'depth.png', 'numbers.csv', 'report.html']
    page = require_self_contained(folder)
    assert {'circle', 'ring', 'star'} <= set(page.texts)
    rows = rows_of(folder)
    assert len(rows) == 4 * 3 + 3 * 3 * 3
    assert [row['unit'] for row in rows if not row['class'] and row['quantity'] == 'shift'] == UNITS
    for row in rows:
        assert row['images'] == ('3' if row['class'] else '9')
        if row['class']:
            assert row['low'] == row['high'] == 'nan'  # of three images
        else:
            assert float(row['low']) <= float(row['mean']) <= float(row['high'])
    first = {row['unit']: float(row['mean']) for row in rows if row['scale'] == '1' and not row['class']}
    last = {row['unit']: float(row['mean']) for row in rows if row['scale'] == '1.5' and not row['class']}
    shifts = {row['unit']: float(row['mean']) for row in rows if row['quantity'] == 'shift' and not row['class']}
    assert shifts == pytest.approx({unit: last[unit] - first[unit] for unit in UNITS}, abs=1e-5)


def test_unknown_split(run, tmp_path):
    for split in ('train', 'val'):
        write_folder(tmp_path / 'data' / split, drawn(1, size=40))
    code, _, logged = run('--data', tmp_path / 'data', '--split', 'tset')
    assert (code, logged) == (1, f'timm-sk: {tmp_path}/data has no split tset: name one of train, val.\n')
    assert not (tmp_path / 'out').exists()


def test_shapes_without_classes(run, tmp_path):
    code, _, _ = run('--shapes', 12, '--scales', '1,3')
    assert code == 0
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['depth.png', 'numbers.csv', 'report.html']
    assert {row['class'] for row in rows_of(tmp_path / 'out')} == {''}


def test_skipped_images(run, tmp_path):
    data = write_folder(tmp_path / 'data', {'circle': drawn(2, size=40)['circle'], 'ring': drawn(2, size=20)['ring']})
    code, _, logged = run('--data', data, '--workers', 0, '--max-bad-images', 2)
    assert code == 0
    assert [line.split(':')[0] for line in logged.splitlines()].count('skipped') == 2
    code, _, logged = run('--data', data, '--workers', 0, '--max-bad-images', 1, out='other')
    assert code == 1
    assert 'or allow more with --max-bad-images' in logged
    assert not (tmp_path / 'other').exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--scales', '0'], 'Invalid scale 0: expected at least 1, the whole image.'),
        (['--scales', '1,9'], 'circle.png: A scale of 9 leaves 4x4 of the 32x32 pixels: take 4 at most.'),
        (['--scales', '1,x'], 'Invalid scales "1,x": expected numbers separated by commas, such as 1,1.5,2.'),
        (['--shapes', '3', '--scales', '4'], 'At a scale of 4 a shape would be larger than the image'),
        (['--units', 'SK_2_3'], 'Unknown unit SK_2_3: the model has SK_2_1, SK_3_1, SK_4_1, SK_5_1.'),
        (['--model', 'sknet_atto.digits'], "0.png: 8x8 pixels are fewer than the model's input of 32x32"),
        (['--model', 'sknet_atoo'], 'sknet_atoo'),
        (['missing.png'], 'missing.png: no such file.'),
        (['--data', 'missing'], 'missing: no such folder'),
        (['--by-class'], '--by-class needs a data set'),
        (['--data', 'x', '--shapes', '3'], 'Pass only one of images, --data and --shapes.'),
    ],
)
def test_invalid_arguments(run, tmp_path, arguments, message):
    code, printed, logged = run(*arguments)
    assert (code, printed) == (1, '')
    assert logged.startswith('timm-sk: ')
    assert message in logged
    assert logged.count('\n') == 1
    assert list(tmp_path.iterdir()) == []


def test_model_without_selection(run, monkeypatch):
    plain = timm.create_model('resnet10t').eval()
    monkeypatch.setattr('timm_sk.factory.ready_model', lambda name, device: plain)
    error = 'timm-sk: ResNet has no unit that selects: use a selective-kernel model with attention.\n'
    assert run('--model', 'resnet10t', EXAMPLES[0]) == (1, '', error)


def test_folder_that_is_not_empty(run, tmp_path, monkeypatch):
    (tmp_path / 'out').mkdir()
    assert run('--scales', '1', '--shapes', 2)[0] == 0  # an empty folder may be there
    before = (tmp_path / 'out' / PAGE).read_bytes()
    code, _, logged = run('--scales', '1', '--shapes', 3)
    assert code == 1
    assert logged == f'timm-sk: {tmp_path}/out is not empty: choose another folder, or remove it.\n'
    assert (tmp_path / 'out' / PAGE).read_bytes() == before
    monkeypatch.setattr(cli_explain, 'require_empty_dir', lambda folder: None)  # as if they came while it ran
    code, _, logged = run('--scales', '1', '--shapes', 3)
    assert code == 1
    assert 'is not empty' in logged
    assert (tmp_path / 'out' / PAGE).read_bytes() == before


def test_folder_is_written_atomically(run, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError('disk full')

    monkeypatch.setattr('timm_sk.explain.report.Path.write_bytes', fail)
    code, _, logged = run('--shapes', 2)
    assert (code, logged) == (1, 'timm-sk: disk full\n')
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib(run, monkeypatch):
    monkeypatch.setattr('timm_sk.optional_packages.find_spec', lambda name: None)
    code, _, logged = run()
    assert (code, logged) == (1, 'timm-sk: matplotlib is not installed: pip install "timm_sk[explain]".\n')


def test_too_many_images(run, monkeypatch):
    monkeypatch.setattr(cli_explain, 'MAX_IMAGES', 2)
    code, _, logged = run(EXAMPLES[0].parent)
    assert (code, logged) == (1, 'timm-sk: Too many images: 8. Pass at most 2, or a data set with --data.\n')


def test_styles_differ_without_color():
    forms = [(style['linestyle'], style['marker']) for style in figures._STYLES]
    assert len({linestyle for linestyle, _ in forms}) == len({marker for _, marker in forms}) == len(forms)


def test_many_classes():
    classes = figures.MAX_NAMED + 5
    generator = np.random.default_rng(0)

    def estimate(*shape):
        mean = generator.normal(size=shape)
        return explain.Estimate(mean, mean - 0.1, mean + 0.1)

    found = explain.Study(
        scales=(1.0, 2.0),
        units=('SK_2_1',),
        chosen=('SK_2_1',),
        class_names=tuple(map(str, range(classes))),
        counts=np.array([0] + [3] * (classes - 1)),
        overall=estimate(2, 1),
        by_class=estimate(classes, 2, 1),
        shift=estimate(1),
        shift_by_class=estimate(classes, 1),
        confidence=0.95,
    )
    (axes,) = figures.classes_figure(found).axes
    lines = [line for line in axes.lines if len(line.get_ydata()) == classes - 1]
    order = 1 + np.argsort(found.by_class.mean[1:, 0, 0])
    assert [line.get_label() for line in lines] == ['1×', '2×']
    for s, line in enumerate(lines):
        assert np.array_equal(line.get_ydata(), found.by_class.mean[order, s, 0])


def test_many_scales_fit_into_the_table(run, tmp_path):
    code, printed, _ = run(EXAMPLES[0], '--scales', '1,1.25,1.5,1.75,2,2.5')
    assert code == 0
    fields = [row['value'] for row in rows_of(tmp_path / 'out') if row['quantity'] == 'receptive_field']
    assert '…' not in printed
    assert 'SK_5_1' in printed
    assert all(f' {float(field):.1f}' in printed for field in fields)


def test_images_of_the_same_name(run, tmp_path):
    for folder in ('a', 'b'):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'x.png').write_bytes(EXAMPLES[0].read_bytes())
    code, _, logged = run(tmp_path / 'a', tmp_path / 'b')
    assert (code, logged) == (0, '')
    names = {row['image'] for row in rows_of(tmp_path / 'out')}
    assert names == {str(tmp_path / folder / 'x.png') for folder in ('a', 'b')}
