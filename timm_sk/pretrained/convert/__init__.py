"""Other implementations' state dicts in our naming, a module per layout. Pure functions that know no model."""

from .lucid import convert_lucid

__all__ = ['convert_lucid']
