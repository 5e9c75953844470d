"""The page in Chromium: `pytest -m browser` needs the extra `browser` and Chromium.

Screenshots are saved in the folder TIMM_SK_SCREENSHOTS, else in the temporary folder of the test.
"""

import itertools
import os
import re
import shutil
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from demo.sample_images import SEVEN, photo, png

from timm_sk import load

pytestmark = pytest.mark.browser

FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run']
FLAGS += ['--disable-background-networking', '--disable-component-update', '--disable-sync']
TABS = ('One model', 'Two models', 'Checkpoints')


@pytest.fixture(scope='module')
def chromium():
    sync_api = pytest.importorskip('playwright.sync_api')
    path = shutil.which('chromium')
    if path is None:
        pytest.fail('chromium is not installed: apt-get install chromium')
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, address):
    """Open the page; afterwards check that no other host was contacted and no script failed."""
    contexts, outside, errors = [], [], []

    def only_here(route):
        url = route.request.url
        if urlsplit(url).hostname == '127.0.0.1' or url.startswith(('data:', 'blob:')):
            return route.continue_()
        outside.append(url)
        return route.abort()

    def opened(width=1400, height=900, scheme='light'):
        context = chromium.new_context(viewport=dict(width=width, height=height), color_scheme=scheme)
        contexts.append(context)
        context.route('**/*', only_here)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on('pageerror', lambda error: errors.append(str(error)))
        page.goto(address)
        page.locator('.sk-units').first.wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert (outside, errors) == ([], [])


@pytest.fixture
def shoot(tmp_path):
    folder = Path(os.environ.get('TIMM_SK_SCREENSHOTS', tmp_path))
    folder.mkdir(parents=True, exist_ok=True)

    def save(page, name):
        page.screenshot(path=folder / f'{name}.png', full_page=True)

    return save


def tab(page, name):
    page.get_by_role('tab', name=name).click()
    panel = page.locator(f'[role=tabpanel]#{name.lower().replace(" ", "-")}')
    panel.wait_for()
    return panel


def clear(panel):
    panel.get_by_role('button', name='Remove Image').click()
    panel.get_by_text('Upload an image, or choose an example.').first.wait_for()


def classes(answer):
    """The first class, and the scale at which the answer was given."""
    return answer.locator('.sk-classes tbody th').first.inner_text(), answer.locator('figcaption').inner_text()


def slide(panel, scale):
    slider = panel.locator('input[type=range]')
    slider.evaluate('(s, v) => { s.value = v; s.dispatchEvent(new Event("input", {bubbles: true})); }', scale)


def wait_for(answer, text):
    answer.get_by_text(text, exact=True).first.wait_for()


def test_load(open_page, shoot):
    page = open_page()
    panel = tab(page, 'One model')
    assert classes(panel.locator('.sk-answer')) == ('ring', 'seen at 1×')
    assert panel.locator('.sk-units tbody th').all_inner_texts() == ['SK_2_1', 'SK_3_1', 'SK_4_1', 'SK_5_1']
    assert page.title() == 'Selective kernels'
    shoot(page, 'load')


def test_uploads(open_page, shoot, tmp_path):
    page = open_page()
    panel = tab(page, 'One model')
    for content, message in ((b'no image', 'not an image'), (png(20_000, 10_000), 'too many pixels')):
        path = tmp_path / 'bad.png'
        path.write_bytes(content)
        clear(panel)
        panel.locator('input[type=file]').set_input_files(path)
        panel.get_by_role('alert').filter(has_text=message).wait_for()
        if message == 'not an image':  # the browser itself takes seconds to draw the other one
            shoot(page, 'bad_file')
    clear(panel)
    panel.locator('input[type=file]').set_input_files(photo(tmp_path))
    panel.locator('.sk-answer').wait_for()
    assert classes(panel.locator('.sk-answer'))[0] == 'ring'
    shoot(page, 'upload')


def test_keyboard(open_page, shoot):
    page = open_page()
    panel = tab(page, 'One model')
    answer = panel.locator('.sk-answer')
    page.get_by_role('tab', name='One model').focus()
    for _ in range(20):
        page.keyboard.press('Tab')
        if page.evaluate('document.activeElement.role') == 'combobox':
            page.get_by_role('option', name='sknet_atto.digits').wait_for()
            continue
        page.get_by_role('option').first.wait_for(state='detached')
        if page.evaluate('document.activeElement.dataset?.example') == 'square':
            break
    page.keyboard.press('Enter')
    answer.locator('.sk-classes tbody th').first.filter(has_text='square').wait_for()
    before = answer.locator('.sk-units').inner_text()
    for _ in range(20):
        page.keyboard.press('Tab')
        if page.evaluate('document.activeElement.type') == 'range':
            break
    for _ in range(10):
        page.keyboard.press('ArrowRight')
    wait_for(answer, 'seen at 1.5×')
    assert answer.locator('.sk-units').inner_text() != before
    assert page.evaluate('document.activeElement.type') == 'range'  # it is kept while answers come
    shoot(page, 'slide')


def test_slow_answer_does_not_replace_newer_one(open_page, monkeypatch):
    def slow(name):
        time.sleep(2)
        return load('sknet_atto', pretrained=False, device='cpu')

    monkeypatch.setattr('timm_sk.demo.model_cache.load', slow)
    page = open_page()
    panel = tab(page, 'One model')
    panel.get_by_role('combobox', name='Model and checkpoint').click()
    page.get_by_role('option', name='resnest14d.gluon_in1k').click()
    for scale in (1.2, 1.7, 2.4, 2.9, 2.0):
        slide(panel, scale)
    wait_for(panel, 'seen at 2×')
    page.wait_for_timeout(2_500)
    assert classes(panel.locator('.sk-answer'))[1] == 'seen at 2×'


def test_change_model(open_page):
    page = open_page()
    panel = tab(page, 'One model')
    chosen = panel.get_by_role('combobox', name='Model and checkpoint')
    chosen.click()
    page.get_by_role('option', name='sknet_atto.digits').click()
    wait_for(panel, 'Examples of sknet_atto.digits')
    panel.get_by_role('button', name='7', exact=True).click()
    panel.locator('.sk-classes tbody th').first.filter(has_text='7').wait_for()
    chosen.click()
    page.get_by_role('option', name='skresnet18.ra_in1k (offline)').click()
    panel.get_by_role('alert').filter(has_text='No weights of skresnet18.ra_in1k').wait_for()


def test_compare(open_page, shoot):
    page = open_page()
    panel = tab(page, 'Two models')
    clear(panel)
    panel.get_by_role('alert').nth(1).wait_for()
    panel.locator('input[type=file]').set_input_files(SEVEN)
    answers = panel.locator('.sk-answer')
    answers.nth(1).wait_for()
    assert classes(answers.nth(1))[0] == '7'
    assert classes(answers.nth(0))[0] != '7'
    slide(panel, 1.5)
    for index in (0, 1):
        wait_for(answers.nth(index), 'seen at 1.5×')
    shoot(page, 'compare')


def maps(panel):
    """Name and share of each heat map, and the image that it draws."""
    figures = panel.locator('.sk-grid figure')
    images = figures.locator('[role=img]').evaluate_all('all => all.map(e => getComputedStyle(e).backgroundImage)')
    return figures.locator('figcaption').all_inner_texts(), images


def test_maps_move_with_the_slider(open_page, shoot):
    page = open_page()
    panel = tab(page, 'One model')
    captions, images = maps(panel)
    assert [caption.split()[0] for caption in captions] == ['SK_2_1', 'SK_3_1', 'SK_4_1', 'SK_5_1']
    assert all(image.count('data:image/png') == 2 for image in images)  # the map over the image
    slide(panel, 2.5)
    wait_for(panel.locator('.sk-answer'), 'seen at 2.5×')
    moved, others = maps(panel)
    assert moved != captions
    assert not {*others} & {*images}
    assert panel.locator('.sk-grid [role=img]').first.evaluate('e => e.clientWidth') > 80
    shoot(page, 'maps')


def test_checkpoints(open_page, shoot):
    page = open_page()
    panel = tab(page, 'Checkpoints')
    charts = panel.locator('.sk-plot')
    assert re.search(r'baselines.*the most accurate is resnest269e.in1k', charts.first.get_attribute('aria-label'))
    panel.get_by_role('rowheader', name='skresnet34.ra_in1k').wait_for()
    shoot(page, 'checkpoints')
    names = panel.locator('.sk-table tbody th')
    panel.get_by_role('button', name='top-1').click()
    assert names.first.inner_text() == 'sknet_atto.digits'
    panel.get_by_role('button', name='params').click()
    panel.get_by_role('button', name='params').click()
    assert panel.locator('th[aria-sort=ascending]').inner_text().startswith('params')
    assert names.first.inner_text() == 'sknet_atto.digits'
    panel.get_by_label('Filter').fill('sknet_atto')
    assert names.locator('visible=true').all_inner_texts() == ['sknet_atto.digits', 'sknet_atto.shapes']


@pytest.mark.parametrize('width', [400, 1400])
def test_labels_of_the_charts(open_page, width):
    panel = tab(open_page(width), 'Checkpoints')
    for plot in panel.locator('.sk-plot').all():
        frame, *boxes = plot.evaluate(
            """plot => [plot, ...plot.querySelectorAll('.sk-label')].filter(e => e.checkVisibility()).map(e => {
                const box = e.getBoundingClientRect();
                return [box.left, box.top, box.right, box.bottom];
            })"""
        )
        assert len(boxes) >= (20 if width == 1400 else 5)
        for box in boxes:
            assert frame[0] <= box[0] <= box[2] <= frame[2] + 12
        for a, b in itertools.combinations(boxes, 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] + 1 or b[3] <= a[1] + 1


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [400, 1400])
def test_tabs_are_readable(open_page, shoot, width, scheme):
    """Nothing is cut off, and axe-core finds no fault, such as a low contrast or an input without a name."""
    axe = pytest.importorskip('axe_playwright_python.sync_playwright').Axe()
    page = open_page(width, 850, scheme)
    for name in TABS:
        tab(page, name)
        page.wait_for_timeout(300)  # tables lay themselves out
        shoot(page, f'{name.lower().replace(" ", "_")}_{width}_{scheme}')
        assert page.evaluate('document.documentElement.scrollWidth') <= width
        clipped = page.evaluate(
            """(parts) => [...document.querySelectorAll(parts)].flatMap(
                (part) => [...part.querySelectorAll('*')].filter((e) => e.checkVisibility() && !e.closest('.sk-unseen')
                    && e.getBoundingClientRect().right > 1 + part.getBoundingClientRect().right
            ).map((e) => e.outerHTML))""",
            '.sk-answer, .sk-maps, .sk-examples, .sk-charts, .sk-table',
        )
        assert clipped == []
        results = axe.run(page)
        assert results.violations_count == 0, results.generate_report()
    background = page.evaluate('getComputedStyle(document.body).backgroundColor')
    assert (max(map(int, re.findall(r'\d+', background)[:3])) < 60) == (scheme == 'dark')
