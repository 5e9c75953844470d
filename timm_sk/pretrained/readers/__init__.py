"""Readers of checkpoint files, a module per format. Nothing in a file is executed or trusted.

Every function raises a FormatError where a file is damaged, hostile or of another format; `read_checkpoint` converts it
to an UnreadableCheckpointError that names the file.
"""

from .checkpoint import read_checkpoint

__all__ = ['read_checkpoint']
