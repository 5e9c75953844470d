"""Hooks of mkdocs: the site has the files outside docs/ too, and links lead to them as they do on GitHub."""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
OUTSIDE = (
    *('CHANGELOG.md', 'CONTRIBUTING.md', 'examples/*.*', 'benchmarks/*.csv', 'benchmarks/*.png'),
    *('weights/README.md', 'weights/*/README.md'),
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/, at their paths in the repository."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links between files of the repository into links between files of the site, where docs/ is the root."""
    file = page.file
    if file.abs_src_path is None:
        return markdown

    def moved(link: re.Match[str]) -> str:
        target = os.path.relpath(Path(file.abs_src_path, '..', link[1]).resolve(), ROOT).removeprefix('docs/')
        return f']({os.path.relpath(target, os.path.dirname(file.src_uri) or ".")}'

    return re.sub(r'\]\((?![a-z]+:|#)([^)#\s]+)', moved, markdown)


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Turn a notebook's links to Markdown files, which its plugin leaves, into links to their pages."""
    return re.sub(r'href="([\w/]+)\.md"', r'href="../\1/"', html) if page.file.src_uri.endswith('.ipynb') else html
