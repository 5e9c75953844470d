"""Readers of checkpoint files, a module per format. Nothing in a file is executed or trusted.

Every function raises a FormatError, and nothing else, where a file is damaged, hostile, of another format, or holds
something other than dense tensors and containers; `read_checkpoint` converts it to an UnreadableCheckpointError that
names the file.
"""

from .checkpoint import read_checkpoint, read_contents, read_training_checkpoint

__all__ = ['read_checkpoint', 'read_contents', 'read_training_checkpoint']
