"""What models are judged by: a data set's pictures, and labels of ImageNet beside its own."""

from dataclasses import dataclass
from pathlib import Path

from timm.data.readers.reader_image_folder import ReaderImageFolder

from ..data import Pictures, PictureStream, open_pictures
from .imagenet_labels import LabelMap, folder_classes, label_map, require_labels


@dataclass(frozen=True, kw_only=True)
class ValidationData:
    """What models are judged by.

    Attributes:
        pictures: The pictures, with the data set's labels.
        class_names: Of the classes that are judged; None where nothing names them.
        label_map: Other labels of ImageNet; None for the data set's.
    """

    pictures: Pictures | PictureStream
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
        data: As for `timm_sk.data.open_pictures`.
        split: Name of the split.
        labels: 'real', 'v2', 'a' or 'r', as `timm_sk.evaluation.imagenet_labels` says; None for the data set's own.
        real_json: A file of ReaL labels instead of those that ship with timm.
        data_dir: Where a data set that has a name is kept.
        class_map: A file that lists the names of the classes; folders of other names are left out.
        download: Whether the data set may be downloaded.
        num_samples: Pictures in the split, for a stream that does not say so.
        batch_size: Pictures in a batch, which some streams need to know.

    Raises:
        ValueError: If there is no such data set, a class has no pictures, or its classes are not those of the labels.
    """
    classes = None
    if labels:
        require_labels(labels)
        classes = folder_classes(labels) if Path(data).exists() else None
        if class_map and classes:
            raise ValueError(f'The labels {labels} name the classes themselves: leave out the class map.')
    try:
        pictures = open_pictures(
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
    _require_filled_classes(pictures, skipped=labels in ('a', 'r') or bool(class_map))
    if not labels:
        return ValidationData(pictures=pictures, class_names=pictures.class_names())
    found = label_map(labels, pictures if isinstance(pictures, Pictures) else None, real_json=real_json)
    names = pictures.class_names()
    if names is not None and len(names) != found.num_classes:
        raise ValueError(f'The labels {labels} are of {found.num_classes} classes, {data} has {len(names)}.')
    return ValidationData(pictures=pictures, class_names=found.class_names, label_map=found)


def _require_filled_classes(pictures: Pictures | PictureStream, *, skipped: bool) -> None:
    """Check that each folder beside the pictures' has pictures too, unless some are left out on purpose."""
    reader = getattr(pictures.dataset, 'reader', None)
    if not isinstance(reader, ReaderImageFolder) or skipped:
        return
    root = Path(reader.root)
    filled = {Path(file).relative_to(root).parts[0] for file, _ in reader.samples}
    folders = (path for path in root.iterdir() if path.is_dir() and not path.name.startswith('.'))
    empty = sorted(path for path in folders if path.name not in filled)
    if empty:
        raise ValueError(f'{empty[0]}: the class has no pictures. Add some, or remove the folder.')
