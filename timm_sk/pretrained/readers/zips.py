"""Zip archives, read by `zipfile` after a check of their directory, and a single file inside one.

What two parsers could understand differently is refused: data before or after the archive, comments, and names that
appear twice.
"""

import io
import struct
import zipfile
import zlib
from typing import BinaryIO

from .stream import FormatError, Stream, quote

_END, _END64, _LOCATOR64 = b'PK\x05\x06', b'PK\x06\x06', b'PK\x06\x07'
_END_BYTES, _END64_BYTES, _LOCATOR64_BYTES = 22, 56, 20
_MAX_DIRECTORY_BYTES = 4 << 20  # resnest269e with the state of AdamW needs a tenth
_ENCRYPTED = 0x1
_CHUNK_BYTES = 1 << 20


def open_zip(file: BinaryIO) -> zipfile.ZipFile:
    """Open an archive after checking its directory."""
    _check_directory(file)
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise FormatError(f'its zip directory is broken ({error!s:.100})') from error
    names = [name.casefold() for name in archive.namelist()]
    if len(set(names)) < len(names):
        raise FormatError('two entries of its zip directory have the same name')
    return archive


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytearray:
    """The bytes of one entry, compared with its checksum; the caller has limited the entry's size."""
    name, content = quote(entry.filename), bytearray()
    if entry.flag_bits & _ENCRYPTED:
        raise FormatError(f'{name} in it is encrypted')
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise FormatError(f'{name} in it is compressed by method {entry.compress_type}; expected stored or deflated')
    try:
        with archive.open(entry) as member:
            while chunk := member.read(_CHUNK_BYTES):
                content += chunk
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise FormatError(f'{name} in it is damaged ({error!s:.100})') from error
    if len(content) != entry.file_size:
        raise FormatError(f'{name} in it lacks {entry.file_size - len(content)} of {entry.file_size} bytes')
    return content


def unzip_single(file: BinaryIO) -> BinaryIO:
    """The one file of an archive, in memory, up to four times the archive's size."""
    size = Stream(file).size
    with open_zip(file) as archive:
        entries = [entry for entry in archive.infolist() if not entry.filename.endswith('/')]
        if len(entries) != 1:
            names = ', '.join(quote(entry.filename) for entry in entries[:3])
            raise FormatError(
                f'it is a zip of {len(entries)} files ({names}), not of one checkpoint', 'Unpack it first.'
            )
        entry = entries[0]
        if entry.file_size > (limit := 4 * size + 4096):
            raise FormatError(f'{quote(entry.filename)} in it would have {entry.file_size} bytes; the limit is {limit}')
        return io.BytesIO(read_entry(archive, entry))


def _check_directory(file: BinaryIO) -> None:
    stream = Stream(file)
    end = stream.size - _END_BYTES
    if end < 0:
        raise FormatError('it is cut off: the zip directory is missing')
    file.seek(end)
    signature, disk, start_disk, _, _, length, start, comment = struct.unpack('<4s4H2LH', stream.read(_END_BYTES))
    if signature != _END or comment:
        raise FormatError('it does not end with a zip directory: it is cut off, or something follows')
    locator = end - _LOCATOR64_BYTES
    file.seek(max(locator, 0))
    if stream.read(4) == _LOCATOR64:
        end = locator - _END64_BYTES
        if end < 0:
            raise FormatError('the two ends of its zip directory disagree')
        file.seek(end)
        signature, record, _, _, disk, start_disk, _, _, length, start = struct.unpack(
            '<4sQ2H2L4Q', stream.read(_END64_BYTES)
        )
        _, locator_disk, found_at, disks = struct.unpack('<4sLQL', stream.read(_LOCATOR64_BYTES))
        if signature != _END64 or record != _END64_BYTES - 12 or found_at != end or locator_disk or disks != 1:
            raise FormatError('the two ends of its zip directory disagree')
    if disk or start_disk or start + length != end:
        raise FormatError('its zip directory is not where its end says')
    if length > _MAX_DIRECTORY_BYTES:
        raise FormatError(f'its zip directory has {length} bytes; the limit is {_MAX_DIRECTORY_BYTES}')
    file.seek(0)
