"""Readers of checkpoint files, a module per format. Nothing in a file is executed or trusted."""

from .checkpoint import detect_format, read_checkpoint

__all__ = ['detect_format', 'read_checkpoint']
