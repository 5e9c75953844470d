"""Links to the documentation and to the papers, which open in a new tab."""

from contextlib import suppress
from functools import cache
from html import escape
from importlib.metadata import PackageNotFoundError, metadata

PAPER = 'https://arxiv.org/abs/1903.06586'


def link(url: str, text: str) -> str:
    """A link as HTML."""
    return f'<a href="{escape(url)}" target="_blank" rel="noopener">{escape(text)}</a>'


@cache
def docs(page: str) -> str:
    """A link to a page of the documentation, such as `attention`; its file's name if the package names no site."""
    with suppress(PackageNotFoundError):  # a checkout that is not installed
        urls = dict(line.split(', ', 1) for line in metadata('timm_sk').get_all('Project-URL') or ())
        if 'Documentation' in urls:
            return link(f'{urls["Documentation"].rstrip("/")}/{page}/', 'Documentation')
    return f'See docs/{page}.md.'
