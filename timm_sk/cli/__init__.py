"""The command line `timm-sk`, a file per command."""

from .main import app, main

__all__ = ['app', 'main']
