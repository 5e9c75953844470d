"""The model and the images of a command that answers for single images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

Images = Annotated[
    list[str] | None,
    typer.Argument(metavar='IMAGE', help="Files, folders or patterns; the model's examples by default."),
]
NO_MODEL = (
    'No model: name one with --model, such as skresnet34, or sknet17_1x32d.cifar10, which ships with the package; '
    '`timm-sk list` shows all.'
)


def choose_images(arguments: Sequence[str] | None, model_name: str) -> list[Path]:
    """The image files that a command names, or without arguments the model's examples; ValueError if it has none."""
    from ..data.images import find_images
    from ..inference.prediction import example_images

    paths = [*find_images(arguments)] if arguments else example_images(model_name)
    if not paths:
        raise ValueError(f'{model_name} has no example images: name images.')
    return paths
