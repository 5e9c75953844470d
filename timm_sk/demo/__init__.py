"""The page of `timm-sk demo`: models, images and the attention of their units, in a browser. Needs the extra `demo`."""

from .app import build_app
from .server import serve

__all__ = ['build_app', 'serve']
