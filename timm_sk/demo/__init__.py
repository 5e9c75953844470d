"""The page of `timm-sk demo`: models, pictures and what the selection does, in a browser. Needs the extra `demo`."""

from .app import build_app
from .server import serve

__all__ = ['build_app', 'serve']
