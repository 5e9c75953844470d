"""Which numbers: the architectures, a file per family. Importing this package registers them."""

from . import sknet, sknet_lucid

__all__ = ['sknet', 'sknet_lucid']
