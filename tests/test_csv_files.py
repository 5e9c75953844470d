"""CSV files: texts stay texts in a spreadsheet, numbers stay numbers."""

import csv
from pathlib import Path

from subprocesses import ROOT

from timm_sk.csv_files import csv_text, write_csv


def test_formulas_become_texts(tmp_path):
    texts = ['=HYPERLINK("http://x","y")', '+1+cmd', '-a.jpg', '@SUM(1)', '\t=1', '\n=1']
    texts.append(Path('=x'))
    kept = [Path('a'), 'a=b', 'cat', '-0.5', '+3', '-inf', '', -1.5, 2, None]
    write_csv(tmp_path / 'x.csv', [['name'], *([value] for value in texts + kept)])
    with (tmp_path / 'x.csv').open(newline='') as file:
        _, *rows = csv.reader(file)
    assert [row[0] if row else '' for row in rows] == [
        *(f"'{text}" for text in texts),
        *('' if value is None else str(value) for value in kept),
    ]
    assert csv_text([['a,b', 'c\r=1']]) == '"a,b",c =1\n'


def test_all_files_are_written_so():
    writers = [path.name for path in (ROOT / 'timm_sk').rglob('*.py') if 'csv.writer' in path.read_text()]
    writers += [path.name for path in (ROOT / 'timm_sk').rglob('*.py') if 'DictWriter' in path.read_text()]
    assert writers == ['csv_files.py']
