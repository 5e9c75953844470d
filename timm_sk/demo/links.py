"""Links to the documentation and to the papers, which open in a new tab."""

from functools import cache
from html import escape
from importlib.metadata import PackageNotFoundError, metadata

PAPER = 'https://arxiv.org/abs/1903.06586'


def link(url: str, text: str) -> str:
    """A link as HTML."""
    return f'<a href="{escape(url)}" target="_blank" rel="noopener">{escape(text)}</a>'


def docs(page: str) -> str:
    """A link to a page of the documentation; its file's name where the package names no site.

    Args:
        page: Name of the page without ending, such as `attention`.
    """
    site = _site()
    return link(f'{site}/{page}/', 'Documentation') if site else f'See docs/{page}.md.'


@cache
def _site() -> str | None:
    """The address `Documentation` among the URLs of the installed package."""
    try:
        urls = metadata('timm_sk').get_all('Project-URL') or []
    except PackageNotFoundError:  # a checkout that is not installed
        return None
    return next(
        (url.rstrip('/') for name, _, url in (line.partition(', ') for line in urls) if name == 'Documentation'), None
    )
