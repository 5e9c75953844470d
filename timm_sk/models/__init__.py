"""Which numbers: the architectures, a file per family. Importing this package registers them."""

from . import sknet

__all__ = ['sknet']
