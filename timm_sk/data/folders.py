"""Images in a folder or a tar with a folder for each class, and the splits inside it."""

import io
import os
import posixpath
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from timm.data.readers.class_map import load_class_map
from timm.utils.misc import natural_key

from ..errors import TimmSkError
from .images import IMAGE_ENDINGS, is_hidden, is_image, log_left_out, walk

# The names of splits, and their synonyms, as in `timm.data.create_dataset`.
TRAIN_NAMES = ('train', 'training')
VAL_NAMES = ('val', 'valid', 'validation', 'eval', 'evaluation')
_SPLIT_NAMES = (*TRAIN_NAMES, *VAL_NAMES, 'test', 'testing')


class DataFolderError(TimmSkError):
    """Raised if a folder or tar is not what a data set should be; names it."""


class ClassFolders:
    """Images by index, in timm's order, as timm's readers give them; the folder at the top is the class.

    Args:
        root: Folder or tar.
        split: Name of the split: a folder in it, or the whole if it has no splits.
        class_map: Class indices by name, or a file with the names; images of other classes are left out.
        natural_order: Number class 10 after class 9, as timm; False for torchvision's alphabetical order.

    Attributes:
        class_to_idx: Class indices by name.
        targets: Labels.

    Raises:
        DataFolderError: If there is no such split, or a class has no images.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        *,
        class_map: str | Mapping[str, int] | None = None,
        natural_order: bool = True,
    ) -> None:
        self._files = files = _files_of(root)
        self._at = at = _join(files.base, _folder_of_split(files, split))
        where, folders = root / at, files.folders(at)
        ordered = sorted(folders, key=natural_key if natural_order else None)
        indices = load_class_map(class_map, str(root)) if class_map else {name: k for k, name in enumerate(ordered)}
        self.class_to_idx: dict[str, int] = indices
        names = [*files.files(at)]
        classes = [indices.get(name.partition('/')[0]) if '/' in name and is_image(name) else None for name in names]
        log_left_out(where, [name for name, label in zip(names, classes, strict=True) if label is None])
        found = ((name, label) for name, label in zip(names, classes, strict=True) if label is not None)
        pairs = sorted(found, key=lambda pair: (natural_key(pair[0]), pair[0]))
        self._names, self.targets = [name for name, _ in pairs], [label for _, label in pairs]
        filled = {*self.targets}
        for name in folders:
            if name in indices and indices[name] not in filled:
                endings = ', '.join(IMAGE_ENDINGS)
                raise DataFolderError(
                    f'{where / name}: the class has no images ({endings}). Add some, or remove the folder.'
                )
        if not self._names:
            raise DataFolderError(f'{where} has no images: it should hold a folder of images for each class.')
        if len(folders) == 1 and not class_map and (inner := files.folders(_join(at, folders[0]))):
            raise DataFolderError(
                f'{where} has one class, {folders[0]}, with the folders {_listed(inner)}: name the folder that has '
                'a folder for each class.'
            )

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        return self._files.open(_join(self._at, self._names[index])), self.targets[index]

    def filename(self, index: int, absolute: bool = False) -> str:
        """The path of an image, or its name in the tar."""
        return self._files.path(_join(self._at, self._names[index]))

    def stamps(self, indices: Iterable[int]) -> Iterator[str]:
        """What changes if images are replaced or renamed: name, size and modification time of each."""
        for index in indices:
            stamp = self._files.stamp(_join(self._at, self._names[index]))
            yield f'{self._names[index]} {self.targets[index]} {stamp}'


def _files_of(root: Path) -> '_Folder | _Tar':
    return _open_tar(root, stamp(root)) if root.is_file() else _Folder(root)


class _Folder:
    """Files of a folder by name."""

    base = ''

    def __init__(self, root: Path) -> None:
        self.root = root

    def folders(self, at: str) -> list[str]:
        """The folders in a folder."""
        with os.scandir(self.root / at) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name))

    def files(self, at: str) -> Iterator[str]:
        """The files in and below a folder, by their names relative to it."""
        return walk(self.root / at)

    def path(self, name: str) -> str:
        return os.path.join(self.root, name)

    def open(self, name: str) -> BinaryIO:
        return open(self.path(name), 'rb')

    def stamp(self, name: str) -> str:
        return stamp(self.path(name))


class _Tar:
    """Files of a tar by name, and of tars in it as of folders. Each worker opens it by itself."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._places: dict[str, tuple[int, int] | None] = {}  # offset and size; None for links to nothing
        self._folders: set[str] = set()
        with tarfile.open(root, 'r:') as archive:
            self._scan(archive, '', 0)
        parents = {posixpath.dirname(name) for name in self._places}
        while parents:
            self._folders |= parents
            parents = {posixpath.dirname(name) for name in parents} - self._folders
        self.base = ''  # the folder that was packed
        while len(found := self.folders(self.base)) == 1 and found[0].lower() not in _SPLIT_NAMES:
            inside = _join(self.base, found[0])
            if not self.folders(inside):
                break
            self.base = inside

    def _scan(self, archive: tarfile.TarFile, at: str, start: int) -> None:
        for member in archive:
            name = posixpath.normpath(posixpath.join(at, member.name.lstrip('/')))
            if any(map(is_hidden, name.split('/'))):
                continue
            if member.isdir():
                self._folders.add(name)
            elif member.isreg() and not member.issparse():
                place = start + member.offset_data, member.size
                if name.endswith('.tar'):
                    with tarfile.open(fileobj=archive.extractfile(member), mode='r:') as inner:
                        self._scan(inner, name.removesuffix('.tar'), place[0])
                else:
                    self._places[name] = place
            else:
                target = posixpath.join(at if member.islnk() else posixpath.dirname(name), member.linkname)
                self._places[name] = self._places.get(posixpath.normpath(target))

    def folders(self, at: str) -> list[str]:
        return sorted(posixpath.basename(name) for name in self._folders if name and posixpath.dirname(name) == at)

    def files(self, at: str) -> Iterator[str]:
        prefix = f'{at}/' if at else ''
        return (name.removeprefix(prefix) for name in self._places if name.startswith(prefix))

    def path(self, name: str) -> str:
        return name

    def open(self, name: str) -> BinaryIO:
        place = self._places[name]
        if place is None:
            raise FileNotFoundError(name)
        with open(self.root, 'rb') as file:
            file.seek(place[0])
            return io.BytesIO(file.read(place[1]))

    def stamp(self, name: str) -> str:
        return f'{self._places[name]} {stamp(self.root)}'


@lru_cache(maxsize=1)
def _open_tar(root: Path, stamp: str) -> _Tar:
    return _Tar(root)  # once for all of its splits


def stamp(path: str | os.PathLike[str]) -> str:
    """Size and modification time of a file."""
    try:
        status = os.stat(path)
    except OSError:
        return 'missing'
    return f'{status.st_size} {status.st_mtime_ns}'


def has_validation_split(root: Path, split: str) -> bool:
    """Whether a folder or tar has a folder for a validation split, which may be missing if it has a usual name.

    Raises:
        DataFolderError: If it has no such split, or one that differs in case only.
    """
    return bool(_folder_of_split(_files_of(root), split, may_be_missing=True))


def _folder_of_split(files: '_Folder | _Tar', split: str, *, may_be_missing: bool = False) -> str:
    """The folder of a split, or '' for the whole. A split has folders in it: a class may be named as a split."""
    tops = files.folders(files.base)
    names = [name for name in tops if files.folders(_join(files.base, name))]
    synonyms = next((synonyms for synonyms in (TRAIN_NAMES, VAL_NAMES) if split in synonyms), ())
    found = next((name for name in (split, *synonyms) if name in names), '')
    others = synonyms if may_be_missing else _SPLIT_NAMES
    is_divided = any(name.lower() in others for name in names)
    if found or (synonyms and not is_divided):
        return found
    has_splits = any(name.lower() in _SPLIT_NAMES for name in names)
    known = f'name one of {_listed(names)}' if has_splits else f'it has no splits, but the folders {_listed(tops)}'
    raise DataFolderError(f'{files.root} has no split {split}: {known}.')


def _join(*names: str) -> str:
    return '/'.join(filter(None, names))


def _listed(names: list[str]) -> str:
    return ', '.join(names[:5]) + (f' and {len(names) - 5} more' if len(names) > 5 else '')
