"""Exported programs take any batch in each form of a net, and learn, by value with timm's class."""

import io

import pytest
import torch
from timm_pair import assert_same, each_family, each_form, each_net, images, in_form, pair, run_step
from torch import Tensor, nn

pytestmark = pytest.mark.deep


@each_net
@each_form
@torch.no_grad()
def test_exported_program_takes_any_batch(name, form):
    ours, theirs = pair(name)
    x, batch = images(2), torch.export.Dim('batch', min=1, max=64)
    program = torch.export.export(in_form(ours, form), (x,), dynamic_shapes=({0: batch},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    for run in (program.module(), torch.export.load(file).module()):
        for count in (1, 3, 8):
            assert_same(run(images(count)), theirs(images(count)))


@each_family
def test_exported_training_takes_any_batch(name):
    """A program for training, as torchao's quantisation-aware training takes it, moves running statistics too."""

    def transform(model: nn.Module) -> list[dict[str, Tensor]]:
        shapes = ({0: torch.export.Dim('batch', min=2, max=64)},)
        program = torch.export.export(model, (images(2),), dynamic_shapes=shapes).module()
        return [run_step(program, images(count)) for count in (3, 5)]

    assert_same(*map(transform, pair(name, training=True)))
