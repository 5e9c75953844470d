"""Zip archives whose directory is what it seems, and a single file inside one.

A zip is read by Python's `zipfile` here and by another parser in torch. What they could understand differently is
refused: data before, between or after the parts, comments, and names that are there twice.
"""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from .stream import Refusal, Stream, quote

_END, _END64, _LOCATOR64 = b'PK\x05\x06', b'PK\x06\x06', b'PK\x06\x07'
_END_BYTES, _END64_BYTES, _LOCATOR64_BYTES = 22, 56, 20
_MOST_DIRECTORY_BYTES = 4 << 20  # resnest269e with the state of AdamW needs a tenth
_ENCRYPTED = 0x1
_CHUNK_BYTES = 1 << 20


def open_zip(file: BinaryIO) -> zipfile.ZipFile:
    """Open an archive after checking its directory.

    Raises:
        Refusal: If the directory is not where it should be, is too large, or has two entries of one name.
    """
    _check_directory(file)
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise Refusal(f'its zip directory is broken ({error!s:.100})') from error
    names = [name.casefold() for name in archive.namelist()]
    if len(set(names)) < len(names):
        raise Refusal('two entries of its zip directory have the same name')
    return archive


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """The bytes of one entry, whose size was found acceptable.

    Raises:
        Refusal: If it is encrypted, damaged or of another size than the directory says.
    """
    return b''.join(_chunks(archive, entry))


def check_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Compare one entry with its checksum, which torch does not.

    Raises:
        Refusal: As `read_entry`.
    """
    for _ in _chunks(archive, entry):
        pass


def _chunks(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[bytes]:
    what, left = quote(entry.filename), entry.file_size
    if entry.flag_bits & _ENCRYPTED:
        raise Refusal(f'{what} in it is encrypted')
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refusal(f'{what} in it is compressed by method {entry.compress_type}; stored and deflated are read')
    try:
        with archive.open(entry) as member:
            while chunk := member.read(_CHUNK_BYTES):
                left -= len(chunk)
                yield chunk
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise Refusal(f'{what} in it is damaged ({error!s:.100})') from error
    if left:
        raise Refusal(f'{what} in it lacks {left} of {entry.file_size} bytes')


def unzip_single(file: BinaryIO) -> BinaryIO:
    """The one file of an archive, in memory; nothing is written.

    Raises:
        Refusal: If there are more or none, or it would outgrow the archive.
    """
    size = Stream(file).size
    with open_zip(file) as archive:
        entries = [entry for entry in archive.infolist() if not entry.filename.endswith('/')]
        if len(entries) != 1:
            names = ', '.join(quote(entry.filename) for entry in entries[:3])
            raise Refusal(f'it is a zip of {len(entries)} files ({names}), not of one checkpoint', 'Unpack it first.')
        entry = entries[0]
        if entry.file_size > (most := 4 * size + 4096):
            raise Refusal(f'{quote(entry.filename)} in it would have {entry.file_size} bytes; {most} are the limit')
        return io.BytesIO(read_entry(archive, entry))


def _check_directory(file: BinaryIO) -> None:
    stream = Stream(file)
    end = stream.size - _END_BYTES
    if end < 0:
        raise Refusal('it is cut off: the zip directory is missing')
    file.seek(end)
    signature, disk, start_disk, _, _, length, start, comment = struct.unpack('<4s4H2LH', stream.read(_END_BYTES))
    if signature != _END or comment:
        raise Refusal('it does not end with a zip directory: it is cut off, or something follows')
    locator = end - _LOCATOR64_BYTES
    file.seek(max(locator, 0))
    if stream.read(4) == _LOCATOR64:
        end = locator - _END64_BYTES
        if end < 0:
            raise Refusal('the two ends of its zip directory do not agree')
        file.seek(end)
        signature, record, _, _, disk, start_disk, _, _, length, start = struct.unpack(
            '<4sQ2H2L4Q', stream.read(_END64_BYTES)
        )
        _, locator_disk, found_at, disks = struct.unpack('<4sLQL', stream.read(_LOCATOR64_BYTES))
        if signature != _END64 or record != _END64_BYTES - 12 or found_at != end or locator_disk or disks != 1:
            raise Refusal('the two ends of its zip directory do not agree')
    if disk or start_disk or start + length != end:
        raise Refusal('its zip directory is not where its end says')
    if length > _MOST_DIRECTORY_BYTES:
        raise Refusal(f'its zip directory has {length} bytes; no more than {_MOST_DIRECTORY_BYTES} are read')
    file.seek(0, os.SEEK_SET)
