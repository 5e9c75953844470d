"""`benchmarks/attention_study.py` on a few small images, and its committed results."""

import csv

import pytest
import torch
import typer
from subprocesses import ROOT
from typer.testing import CliRunner

from benchmarks import attention_study

pytestmark = pytest.mark.deep

app = typer.Typer()
app.command()(attention_study.main)


def test_small_run(tmp_path):
    small = ('--images', '6', '--batch-size', '4', '--file-size', '40', '--workers', '0', '--threads', '1')
    done = CliRunner().invoke(app, [*small, '--smoke', '--out', str(tmp_path / 'study.csv')])
    assert done.exit_code == 0, done.output
    assert CliRunner().invoke(app, [*small, '--rounds', '3']).exit_code == 1


def test_ratios_of_each_round():
    found = {('plain', 'ready'): [10.0, 20.0, 40.0], ('study', 'ready'): [20.0, 25.0, 40.0]}
    setting = dict(model='m', batch=2, size=32, file_size=40, workers=0, scales=3)
    _, study = attention_study.rows(found, count=100, device=torch.device('cpu'), **setting)
    assert (study.min_of_plain, study.median_of_plain, study.max_of_plain) == (0.5, 0.8, 1.0)
    assert (study.min_images_per_s, study.median_images_per_s, study.max_images_per_s) == (2500, 4000, 5000)


def test_measured_studies_reach_nine_tenths_of_the_speed():
    rows = list(csv.DictReader((ROOT / 'benchmarks' / 'attention_study.csv').read_text().splitlines()))
    assert tuple(rows[0]) == attention_study.StudyRow.columns()
    studies = [row for row in rows if row['what'] == 'study']
    assert {row['source'] for row in studies} == {'ready', 'files'}
    assert all(float(row['median_of_plain']) >= 0.9 and int(row['rounds']) >= 7 for row in studies)
