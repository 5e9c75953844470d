"""Checkpoints as folders and repositories that timm and transformers load."""
