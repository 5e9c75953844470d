"""Which numbers: the architectures, a file per family. Importing this package registers them."""

from . import sk_mobile, sknet, sknet_cifar, sknet_lucid, sknet_upstreams

__all__ = ['sk_mobile', 'sknet', 'sknet_cifar', 'sknet_lucid', 'sknet_upstreams']
