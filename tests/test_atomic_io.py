"""Files and folders are complete or absent."""

import os
import threading

import pytest

from timm_sk.atomic_io import atomic_dir, atomic_write, read_json, require_empty_dir, write_json


def test_atomic_write_error_keeps_the_old_file(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'old')
    with pytest.raises(TypeError), atomic_write(path) as file:
        file.write('not bytes')
    assert path.read_bytes() == b'old'
    assert list(tmp_path.iterdir()) == [path]
    with atomic_write(path) as file:
        file.write(b'new')
    assert path.read_bytes() == b'new'
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_follows_no_planted_link(tmp_path):
    victim, path = tmp_path / 'victim', tmp_path / 'file'
    victim.write_bytes(b'precious')
    (tmp_path / f'file.{os.getpid()}.{threading.get_ident()}.partial').symlink_to(victim)
    path.symlink_to(victim)
    with atomic_write(path) as file:
        file.write(b'new')
    assert (victim.read_bytes(), path.read_bytes(), path.is_symlink()) == (b'precious', b'new', False)


def test_require_empty_dir(tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    with pytest.raises(ValueError, match='file is a file: choose a folder'):
        require_empty_dir(tmp_path / 'file')
    with pytest.raises(ValueError, match=r'b cannot be created in .*/file: choose another'):
        require_empty_dir(tmp_path / 'file' / 'a' / 'b')
    with pytest.raises(ValueError, match='is not empty: choose another folder, or remove it'):
        require_empty_dir(tmp_path)
    require_empty_dir(tmp_path / 'a' / 'b')
    (tmp_path / 'a').mkdir()
    require_empty_dir(tmp_path / 'a')
    monkeypatch.setattr('timm_sk.atomic_io.os.access', lambda path, mode: False)
    with pytest.raises(ValueError, match='cannot be created in'):
        require_empty_dir(tmp_path / 'a' / 'b')


def test_json_format_version(tmp_path):
    path = tmp_path / 'x.json'
    write_json(path, dict(a=1), version=3)
    assert path.read_text() == '{\n  "format_version": 3,\n  "a": 1\n}\n'
    assert read_json(path, version=3) == dict(a=1)
    with pytest.raises(ValueError, match='it has format version 3, this version of timm_sk reads 2'):
        read_json(path, version=2)
    write_json(path, dict(a=1))
    with pytest.raises(ValueError, match='it has format version None'):
        read_json(path, version=1)


def test_atomic_dir_recovers_from_a_kill_between_two_renames(tmp_path):
    folder = tmp_path / 'x'
    with atomic_dir(folder) as new:
        (new / 'a').touch()
    folder.rename(tmp_path / '.x.old')
    (tmp_path / '.x.new').mkdir()
    with atomic_dir(folder) as new:
        assert (folder / 'a').is_file()
        assert not list(new.iterdir())
    assert (list(tmp_path.iterdir()), list(folder.iterdir())) == ([folder], [])
