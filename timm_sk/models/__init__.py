"""The architectures, a file per family. Importing this package registers them."""

from . import (
    lsknet,
    resnest,
    resnest_upstreams,
    sk_mobile,
    sknet,
    sknet_cifar,
    sknet_lucid,
    sknet_simclr,
    sknet_upstreams,
)

__all__ = [
    'lsknet',
    'resnest',
    'resnest_upstreams',
    'sk_mobile',
    'sknet',
    'sknet_cifar',
    'sknet_lucid',
    'sknet_simclr',
    'sknet_upstreams',
]
