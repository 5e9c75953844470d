"""The images of a data set, and ImageNet labels other than its own."""

from dataclasses import dataclass
from pathlib import Path

from ..data import ImageDataset, ImageStream, open_dataset
from .imagenet_labels import LabelMap, folder_classes, label_map
from .validation_config import ValidationConfig


@dataclass(frozen=True, kw_only=True)
class ValidationData:
    """Images to evaluate on."""

    images: ImageDataset | ImageStream
    class_names: list[str] | None  # None if unknown
    label_map: LabelMap | None = None  # ImageNet labels other than the data set's


def open_validation_data(config: ValidationConfig) -> ValidationData:
    """Open the data set of the settings.

    Raises:
        ValueError: If the data set does not exist, a class has no images, or its classes are not those of the labels.
    """
    data, labels, classes = config.data, config.labels, None
    if labels:
        classes = folder_classes(labels) if Path(data).exists() else None
        if config.class_map and classes:
            raise ValueError(f'The labels {labels} define the classes: omit the class map.')
    try:
        images = open_dataset(
            data,
            split=config.split,
            data_dir=config.data_dir,
            class_map=classes or config.class_map,
            download=config.dataset_download,
            num_samples=config.num_samples,
            batch_size=config.batch_size,
            timm_reader=config.timm_reader,
        )
    except ValueError as error:
        hint = f' The labels {labels} are for folders with names like {", ".join([*classes][:3])}.' if classes else ''
        raise ValueError(f'{error}{hint}') from error
    names = images.class_names()
    if not labels:
        return ValidationData(images=images, class_names=names)
    found = label_map(labels, images if isinstance(images, ImageDataset) else None, real_json=config.real_json)
    if names is not None and len(names) != len(found.class_names):
        raise ValueError(f'The labels {labels} are of {len(found.class_names)} classes, {data} has {len(names)}.')
    return ValidationData(images=images, class_names=found.class_names, label_map=found)
