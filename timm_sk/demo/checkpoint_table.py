"""The checkpoints as a table that can be filtered and sorted; on a narrow screen each row is a card."""

from collections.abc import Sequence
from html import escape

from ..checkpoints import CHECKPOINTS, Checkpoint
from ..models import listing

COLUMNS = ('checkpoint', 'params (M)', 'GMACs', 'input', 'top-1 (%)', 'measured on', 'licence', 'weights')

# The filter hides rows. The button of a column sorts by it, downwards first; the numbers of a column have as many
# decimals.
ON_LOAD = """
const body = element.querySelector('tbody'), rows = [...body.rows];
element.addEventListener('input', (event) => {
    const text = event.target.value.toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(text);
});
element.addEventListener('click', (event) => {
    const head = event.target.closest('thead th');
    if (!head) return;
    const sign = head.ariaSort === 'descending' ? 1 : -1;
    for (const other of head.parentElement.cells) other.removeAttribute('aria-sort');
    head.ariaSort = sign > 0 ? 'ascending' : 'descending';
    const cell = (row) => row.cells[head.cellIndex].textContent;
    rows.sort((a, b) => sign * cell(a).localeCompare(cell(b), 'en', {numeric: true}));
    body.append(...rows);
});
"""


def rows() -> list[Checkpoint]:
    """The checkpoints with weights."""
    return [row for row in CHECKPOINTS.values() if row.sources]


def cells(row: Checkpoint) -> tuple[str, ...]:
    """The text of a row, in the order of `COLUMNS`."""
    _, _, params, macs, _, weights, top1 = listing.cells(row)
    size, measured_on = str(row.input_size[-1]), row.dataset or 'not established'
    return row.name, params.removesuffix(' M'), macs, size, top1, measured_on, row.licence or 'none stated', weights


def table(checkpoints: Sequence[Checkpoint]) -> str:
    """The table as HTML."""
    heads = ''.join(f'<th scope="col"><button type="button">{column}</button></th>' for column in COLUMNS)
    lines = ''.join(f'<tr>{"".join(map(_cell, COLUMNS, cells(row)))}</tr>' for row in checkpoints)
    return f"""<p class="sk-note">Accuracies are those that the makers of the weights report. Weights are bundled
with the package, on the Hugging Face Hub, at a release's URL, or to be downloaded by hand. See docs/checkpoints.md.</p>
<label class="sk-filter">Filter <input type="search" placeholder="resnest50d"></label>
<table class="sk-table"><caption class="sk-unseen">Checkpoints</caption>
<thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>"""


def _cell(column: str, text: str) -> str:
    if column == COLUMNS[0]:
        return f'<th scope="row">{escape(text)}</th>'
    return f'<td data-column="{column}">{escape(text)}</td>'
