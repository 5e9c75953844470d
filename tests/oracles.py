"""Outputs of other implementations, for weights that are filled from their own names and shapes.

An oracle is a pair of files in `tests/data/oracles/`: `<name>.json` lists one upstream network's tensors in upstream's
naming, how they are filled (`random_weights.fill`) and its inputs; `<name>.safetensors` has the outputs of upstream's
own code on the CPU in float32, in eval mode.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from random_weights import fill, make_input
from safetensors.torch import load_file
from torch import Tensor, nn

from timm_sk.pretrained import check_state_dict

FOLDER = Path(__file__).parent / 'data' / 'oracles'


@dataclass(frozen=True)
class Oracle:
    """One network of one upstream.

    Attributes:
        name: Name of its two files.
        facts: The JSON file, with the address of upstream's code and its number of parameters (`num_params`).
        expected: Every stored tensor: `logits.<input>`, or `out.<input>` of a single layer, and `stem.*`, `stage1.*`
            and so on: `mean` and `std` per channel, corners `tl` and `br` of four channels of the first image.
    """

    name: str
    facts: dict[str, Any]
    expected: dict[str, Tensor]

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """Upstream's state, in its order and naming; checked against the digest of the weights that it ran with."""
        scheme = self.facts['fill']
        damp = tuple((pattern, factor) for pattern, factor in scheme['damp'])
        weights = {
            key: fill(key, tuple(shape), getattr(torch, dtype), seed=scheme['seed'], damp=damp)
            for key, shape, dtype in self.facts['tensors']
        }
        check_digest(weights, self.facts['fill_digest'])
        return weights

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """The inputs by tag: `s64`, `s224` and so on."""
        return {tag: make_input(tuple(x['shape']), seed=x['seed']) for tag, x in self.facts['inputs'].items()}

    @cached_property
    def outputs(self) -> dict[str, Tensor]:
        """Upstream's output for each input, by the same tags."""
        named = {key: tensor for key, tensor in self.expected.items() if key.partition('.')[0] in ('logits', 'out')}
        return {key.partition('.')[2]: tensor for key, tensor in named.items()}

    def distance(self, tag: str, found: Tensor) -> float:
        """Largest difference of an output to upstream's, in units of the standard deviation of upstream's."""
        expected = self.outputs[tag]
        if found.shape != expected.shape:
            raise ValueError(f'The output of {self.name} for {tag} is {list(expected.shape)}, got {list(found.shape)}.')
        return float((found - expected).abs().max() / expected.std())

    @torch.inference_mode()
    def check(
        self,
        model: nn.Module,
        weights: dict[str, Tensor],
        tolerance: float,
        report: Callable[[str, float], object],
        *,
        lacking: tuple[str, ...] = (),
    ) -> None:
        """Check a model's outputs with upstream's weights, in our layout, and report the distances.

        Names of parameters that upstream lacks end with one of `lacking`.
        """
        check_state_dict(weights, {key: tensor.shape for key, tensor in model.state_dict().items()})
        model.eval().load_state_dict(weights, strict=False)
        counted = [parameter for name, parameter in model.named_parameters() if not name.endswith(lacking)]
        assert sum(parameter.numel() for parameter in counted) == self.facts['num_params']
        for tag, x in self.inputs.items():
            distance = self.distance(tag, model(x))
            report(tag, distance)
            assert distance <= tolerance, tag


def load_oracle(name: str) -> Oracle:
    """Read an oracle by the name of its files."""
    facts = json.loads((FOLDER / f'{name}.json').read_text())
    return Oracle(name=name, facts=facts, expected=load_file(FOLDER / f'{name}.safetensors'))


def check_digest(weights: dict[str, Tensor], digest: dict[str, Any]) -> None:
    """Raise unless these are the weights that upstream ran with, so that a changed generator is not taken for a bug."""
    filled = [tensor.numpy() for tensor in weights.values() if tensor.is_floating_point()]
    count = sum(array.size for array in filled)
    total = sum(float(array.sum(dtype='float64')) for array in filled)
    squares = sum(float(np.square(array, dtype='float64').sum()) for array in filled)
    probes_agree = all(
        np.allclose(weights[key].flatten()[: len(values)].numpy(), values, rtol=1e-6, atol=0)
        for key, values in digest['probe'].items()
    )
    sums_agree = np.allclose([total, squares], [digest['sum'], digest['sumsq']], rtol=1e-7, atol=1e-6)
    if count != digest['count'] or not sums_agree or not probes_agree:
        raise ValueError(
            f'The filled weights are not those of the oracle: {count} values, sum {total}, squares {squares}; '
            f'expected {digest}.'
        )
