"""The documentation site: links, the API reference, and no request to another host.

Screenshots are saved in the folder TIMM_SK_SCREENSHOTS, else in a temporary folder.
"""

import os
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from subprocesses import ROOT, run_python

import timm_sk

PAGES = ('', 'quickstart', 'models', 'selection', 'training', 'api/timm_sk', 'CHANGELOG', 'examples')


class QuietHandler(SimpleHTTPRequestHandler):
    """Logs no request."""

    def log_message(self, *_: object) -> None:
        pass


class Links(HTMLParser):
    """The addresses and the anchors of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(page.read_text(encoding='utf-8'))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors.add(given.get('id') or '')
        address = given.get('src') or given.get('href')
        if address:
            (self.links if tag == 'a' else self.loaded).add(address)


@pytest.fixture(scope='session')
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. mkdocs knows no proxy and no network here."""
    pytest.importorskip('mkdocs', reason='the extra docs')
    folder = tmp_path_factory.mktemp('site')
    proxies = dict.fromkeys(('http_proxy', 'https_proxy', 'all_proxy'), 'http://127.0.0.1:9')
    done = run_python(
        *('-m', 'mkdocs', 'build', '--strict', '--site-dir', str(folder)), cwd=ROOT, NO_MKDOCS_2_WARNING='1', **proxies
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.deep
def test_links_and_reference(site: Path) -> None:
    pages = {page: Links(page) for page in site.rglob('*.html')}
    dead, outside = [], []
    for page, found in pages.items():
        for address in found.links | found.loaded:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                outside += [address] if address in found.loaded and parts.scheme != 'data' else []
                continue
            if page.name == '404.html':  # its addresses begin with the root
                continue
            target = page.parent.joinpath(unquote(parts.path)).resolve() if parts.path else page
            target = target / 'index.html' if target.is_dir() else target
            if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in pages[target].anchors):
                dead.append(f'{page.relative_to(site)}: {address}')
    assert dead == []
    assert outside == []
    assert len(pages) > 35

    reference = pages[site / 'api' / 'timm_sk' / 'index.html'].anchors
    public = [name for name in timm_sk.__all__ if callable(getattr(timm_sk, name))]
    assert len(public) > 10
    assert [name for name in public if f'timm_sk.{name}' not in reference] == []
    assert {'timm_sk.ops.fuse', 'timm_sk.ops.select'} <= pages[site / 'api' / 'ops' / 'index.html'].anchors
    assert (site / 'benchmarks' / 'engines.csv').read_bytes() == (ROOT / 'benchmarks' / 'engines.csv').read_bytes()


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """The site, served on the loopback interface."""
    handler = partial(QuietHandler, directory=str(site))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


@pytest.mark.browser
def test_no_request_leaves_the_machine(address: str, tmp_path: Path) -> None:
    sync_api = pytest.importorskip('playwright.sync_api')
    shots = Path(os.environ.get('TIMM_SK_SCREENSHOTS', tmp_path))
    shots.mkdir(parents=True, exist_ok=True)
    requests: list[str] = []
    errors: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which('chromium'), args=['--no-sandbox'])
        for scheme in ('light', 'dark'):
            page = browser.new_context(color_scheme=scheme).new_page()
            page.set_default_timeout(60_000)
            page.on('request', lambda request: requests.append(request.url))
            page.on('pageerror', lambda error: errors.append(str(error)))
            page.on('console', lambda message: errors.append(message.text) if message.type == 'error' else None)
            for name in PAGES:
                page.goto(f'{address}/{name}/' if name else address)
                page.wait_for_load_state('networkidle')
                loaded = page.eval_on_selector_all('article img', 'all => all.map(image => image.naturalWidth > 0)')
                assert all(loaded), name
                assert loaded or name not in ('quickstart', 'selection')
                page.screenshot(path=shots / f'site_{name.replace("/", "_") or "home"}_{scheme}.png')
            page.locator('input.md-search__input').click()
            page.keyboard.type('attention_weights')
            page.locator('.md-search-result__link').first.wait_for()
            assert 'attention_weights' in page.locator('.md-search-result__list').inner_text()
        browser.close()
    assert len(requests) > 2 * len(PAGES)
    outside = [
        url for url in requests if urlsplit(url).hostname != '127.0.0.1' and not url.startswith(('data:', 'blob:'))
    ]
    assert (outside, errors) == ([], [])
