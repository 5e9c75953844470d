"""A self-contained HTML page with text, figures and tables."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Table = tuple[list[str], list[list[str]]]

_STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem; }
h1, h2, td, figcaption { overflow-wrap: anywhere; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; background: white; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.7rem; text-align: right; border-bottom: 1px solid #8888; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
"""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of the page: name and bytes of its PNG file, alternative text, and the text below it."""

    name: str
    png: bytes
    alt: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the page: heading, paragraphs of plain text, figures, then columns and rows of a table."""

    title: str
    text: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    table: Table | None = None


def render_page(title: str, sections: Sequence[Section]) -> bytes:
    """Return the page, which loads nothing, and fits narrow screens and dark mode."""
    body = '\n'.join(_section(section) for section in sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{body}
</body>
</html>
""".encode()


def _section(section: Section) -> str:
    parts = [f'<h2>{escape(section.title)}</h2>', *(f'<p>{escape(text)}</p>' for text in section.text)]
    for figure in section.figures:
        source = f'data:image/png;base64,{base64.b64encode(figure.png).decode()}'
        image = f'<img src="{source}" alt="{escape(figure.alt)}">'
        parts.append(f'<figure>{image}<figcaption>{escape(figure.caption)}</figcaption></figure>')
    if section.table:
        columns, rows = section.table
        head = ''.join(f'<th scope="col">{escape(column)}</th>' for column in columns)
        lines = ('<tr>' + ''.join(f'<td>{escape(cell)}</td>' for cell in row) + '</tr>' for row in rows)
        parts.append(f'<div class="wide"><table><tr>{head}</tr>\n' + '\n'.join(lines) + '\n</table></div>')
    return '<section>\n' + '\n'.join(parts) + '\n</section>'
