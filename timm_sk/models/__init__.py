"""Which numbers: the architectures, a file per family. Importing this package registers them."""

from . import sknet, sk_mobile  # isort: skip  (the order of the table of models)

__all__ = ['sk_mobile', 'sknet']
