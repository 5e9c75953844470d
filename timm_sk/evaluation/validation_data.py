"""What models are judged by: a data set's images, and labels of ImageNet beside its own."""

from dataclasses import dataclass
from pathlib import Path

from timm.data.readers.reader_image_folder import ReaderImageFolder

from ..data import ImageDataset, ImageStream, open_dataset
from .imagenet_labels import LabelMap, folder_classes, label_map, require_labels


@dataclass(frozen=True, kw_only=True)
class ValidationData:
    """What models are judged by.

    Attributes:
        images: The images, with the data set's labels.
        class_names: Of the classes that are judged; None where nothing names them.
        label_map: Other labels of ImageNet; None for the data set's.
    """

    images: ImageDataset | ImageStream
    class_names: list[str] | None = None
    label_map: LabelMap | None = None


def open_validation_data(
    data: str,
    *,
    split: str = 'validation',
    labels: str | None = None,
    real_json: str | None = None,
    data_dir: str | None = None,
    class_map: str | None = None,
    download: bool = False,
    num_samples: int | None = None,
    batch_size: int = 1,
) -> ValidationData:
    """Open what models are to be judged by.

    Args:
        data: As for `timm_sk.data.open_dataset`.
        split: Name of the split.
        labels: 'real', 'v2', 'a' or 'r', as `timm_sk.evaluation.imagenet_labels` says; None for the data set's own.
        real_json: A file of ReaL labels instead of those that ship with timm.
        data_dir: Where a data set that has a name is kept.
        class_map: A file that lists the names of the classes; folders of other names are left out.
        download: Whether the data set may be downloaded.
        num_samples: ImageDataset in the split, for a stream that does not say so.
        batch_size: ImageDataset in a batch, which some streams need to know.

    Raises:
        ValueError: If there is no such data set, a class has no images, or its classes are not those of the labels.
    """
    classes = None
    if labels:
        require_labels(labels)
        classes = folder_classes(labels) if Path(data).exists() else None
        if class_map and classes:
            raise ValueError(f'The labels {labels} name the classes themselves: leave out the class map.')
    try:
        images = open_dataset(
            data,
            split=split,
            data_dir=data_dir,
            class_map=classes or class_map,
            download=download,
            num_samples=num_samples,
            batch_size=batch_size,
        )
    except ValueError as error:
        hint = f' The labels {labels} are for folders with names like {", ".join([*classes][:3])}.' if classes else ''
        raise ValueError(f'{error}{hint}') from error
    _require_filled_classes(images, skipped=labels in ('a', 'r') or bool(class_map))
    if not labels:
        return ValidationData(images=images, class_names=images.class_names())
    found = label_map(labels, images if isinstance(images, ImageDataset) else None, real_json=real_json)
    names = images.class_names()
    if names is not None and len(names) != found.num_classes:
        raise ValueError(f'The labels {labels} are of {found.num_classes} classes, {data} has {len(names)}.')
    return ValidationData(images=images, class_names=found.class_names, label_map=found)


def _require_filled_classes(images: ImageDataset | ImageStream, *, skipped: bool) -> None:
    """Check that each folder beside the images' has images too, unless some are left out on purpose."""
    reader = getattr(images.dataset, 'reader', None)
    if not isinstance(reader, ReaderImageFolder) or skipped:
        return
    root = Path(reader.root)
    filled = {Path(file).relative_to(root).parts[0] for file, _ in reader.samples}
    folders = (path for path in root.iterdir() if path.is_dir() and not path.name.startswith('.'))
    empty = sorted(path for path in folders if path.name not in filled)
    if empty:
        raise ValueError(f'{empty[0]}: the class has no images. Add some, or remove the folder.')
