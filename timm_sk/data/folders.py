"""Images in a folder or a tar with a folder for each class, and the splits inside it."""

import io
import os
import posixpath
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from timm.data.readers.class_map import load_class_map
from timm.utils.misc import natural_key

from ..errors import TimmSkError
from .images import IMAGE_ENDINGS, few, is_hidden, is_image, log_left_out, repeats, walk

# The names of splits, and their synonyms, as in `timm.data.create_dataset`.
TRAIN_NAMES = ('train', 'training')
VAL_NAMES = ('val', 'valid', 'validation', 'eval', 'evaluation')
_SPLIT_NAMES = (*TRAIN_NAMES, *VAL_NAMES, 'test', 'testing')
_MAX_LINKS = 40  # from one to the next, as on Linux


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
        part = _folder_of_split(files, split)
        if part:
            log_left_out(root, _images_beside(files, part), 'beside the splits', kind='folder')
        self._at = at = _join(files.base, part)
        where, folders = root / at, files.folders(at)
        ordered = sorted(folders, key=natural_key if natural_order else None)
        indices = load_class_map(class_map, str(root)) if class_map else {name: k for k, name in enumerate(ordered)}
        self.class_to_idx: dict[str, int] = indices
        found: list[tuple[str, int]] = []
        others: list[str] = []
        unmapped: list[str] = []
        for name in files.files(at):
            top, slash, _ = name.partition('/')
            if not slash or not is_image(name):
                others.append(name)
            elif top in indices:
                found.append((name, indices[top]))
            else:
                unmapped.append(name)
        log_left_out(where, others, 'not images in the folder of a class')
        log_left_out(where, unmapped, 'of classes that the class map leaves out')
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
                f'{where} has one class, {folders[0]}, with the folders {few(inner, 5, ", ")}: name the folder that '
                'has a folder for each class.'
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
            names = [entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name)]
        return sorted(name for name in names if not repeats(self.root / at / name, self.root))

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

    def __init__(self, root: Path, version: str) -> None:
        self.root, self._version = root, version
        members: dict[str, tuple[int, int] | str] = {}  # offset and size, or the target of a link
        folders: set[str] = set()
        with tarfile.open(root, 'r:') as archive:
            _require_whole(root)
            _scan(archive, '', 0, members, folders)
        names = [name for name in members if not _has_hidden_part(name)]  # hidden ones may be targets of links
        parents = {posixpath.dirname(name) for name in names} | folders
        while parents:
            folders |= parents
            parents = {posixpath.dirname(name) for name in parents} - folders
        places = {name: _place(members, name) for name in names}
        self._places = {name: place for name, place in places.items() if place is not None}
        log_left_out(root, [*places.keys() - self._places.keys()], 'neither files nor links to files in the tar')
        self._folders: dict[str, list[str]] = defaultdict(list)  # in each folder
        for name in sorted(folders - {''}):
            self._folders[posixpath.dirname(name)].append(posixpath.basename(name))
        self.base = ''  # the folder that was packed
        while len(found := self.folders(self.base)) == 1 and found[0].lower() not in _SPLIT_NAMES:
            inside = _join(self.base, found[0])
            if not self.folders(inside):
                break
            self.base = inside

    def folders(self, at: str) -> list[str]:
        return self._folders.get(at, [])

    def files(self, at: str) -> Iterator[str]:
        prefix = f'{at}/' if at else ''
        return (name.removeprefix(prefix) for name in self._places if name.startswith(prefix))

    def path(self, name: str) -> str:
        return name

    def open(self, name: str) -> BinaryIO:
        start, size = self._places[name]
        with open(self.root, 'rb') as file:
            file.seek(start)
            return io.BytesIO(file.read(size))

    def stamp(self, name: str) -> str:
        return f'{self._places[name]} {self._version}'


_open_tar = lru_cache(maxsize=1)(_Tar)  # once for all of its splits


def _require_whole(root: Path) -> None:
    """Reject a tar without its closing blocks of zeros: tarfile may read it as one with fewer files."""
    with root.open('rb') as file:
        file.seek(-tarfile.BLOCKSIZE, os.SEEK_END)
        if any(file.read()):
            raise DataFolderError(f'{root}: the tar is truncated. Copy or download it again.')


def _scan(
    archive: tarfile.TarFile, at: str, start: int, members: dict[str, tuple[int, int] | str], folders: set[str]
) -> None:
    """Add the members of a tar, or of one in it, and its folders."""
    for member in archive:
        name = posixpath.normpath(posixpath.join(at, member.name.lstrip('/')))
        if member.isdir():
            if not _has_hidden_part(name):
                folders.add(name)
        elif member.isreg() and not member.issparse():
            place = start + member.offset_data, member.size
            if name.endswith('.tar') and not _has_hidden_part(name):
                with tarfile.open(fileobj=archive.extractfile(member), mode='r:') as inner:
                    _scan(inner, name.removesuffix('.tar'), place[0], members, folders)
            else:
                members[name] = place
        else:
            is_hard = member.islnk()
            target = member.linkname.lstrip('/') if is_hard else member.linkname
            members[name] = posixpath.normpath(posixpath.join(at if is_hard else posixpath.dirname(name), target))


def _place(members: Mapping[str, tuple[int, int] | str], name: str) -> tuple[int, int] | None:
    """Offset and size of a file, or of the one that a link leads to, if any."""
    for _ in range(_MAX_LINKS):
        found = members.get(name)
        if not isinstance(found, str):
            return found
        name = found
    return None


def _has_hidden_part(name: str) -> bool:
    return any(map(is_hidden, name.split('/')))


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
    names = _with_folders(files, [name for name in tops if name.lower() in _SPLIT_NAMES or name == split])
    synonyms = _synonyms(split)
    found = next((name for name in (split, *synonyms) if name in names), '')
    others = synonyms if may_be_missing else _SPLIT_NAMES
    is_divided = any(name.lower() in others for name in names)
    if found or (synonyms and not is_divided):
        return found
    if any(name.lower() in _SPLIT_NAMES for name in names):
        known = f'name one of {few(_with_folders(files, tops), 5, ", ")}'
    else:
        known = f'it has no splits, but the folders {few(tops, 5, ", ")}'
    raise DataFolderError(f'{files.root} has no split {split}: {known}.')


def require_split_for_timm(root: Path, split: str) -> None:
    """Check the split of a folder or tar of which timm's reader would read all, if it finds no such split.

    Raises:
        DataFolderError: If there is no such split, or it is one of several in a tar.
    """
    name = split.partition('[')[0]
    if root.is_dir() and any((root / found).exists() for found in (name, *_synonyms(name))):
        return  # timm takes any path
    files = _files_of(root)
    if _folder_of_split(files, name) and len(files.folders(files.base)) > 1:
        raise DataFolderError(
            f"{root}: timm reads all of a tar, not its split {name}: unpack it, or read it without timm's reader."
        )


def _synonyms(split: str) -> tuple[str, ...]:
    return next((names for names in (TRAIN_NAMES, VAL_NAMES) if split in names), ())


def _with_folders(files: '_Folder | _Tar', tops: list[str]) -> list[str]:
    return [name for name in tops if files.folders(_join(files.base, name))]


def _images_beside(files: '_Folder | _Tar', part: str) -> list[str]:
    """The folders beside a split that have images, but no folders as splits have."""
    tops = [name for name in files.folders(files.base) if name != part]
    flat = sorted({*tops} - {*_with_folders(files, tops)})
    return [name for name in flat if any(map(is_image, files.files(_join(files.base, name))))]


def _join(*names: str) -> str:
    return '/'.join(filter(None, names))
