"""Entry point of the command `timm-sk`: help, completion, `--version` and usage errors without importing torch.

`import timm_sk` imports torch and timm to register the models, which takes seconds. `main` puts the package into
`sys.modules` without running its `__init__.py`, and imports `timm_sk.cli`, whose modules import torch only inside the
commands. `timm_sk.cli.commands` runs the `__init__.py` before it runs a command.

`python -m timm_sk` and `timm_sk.cli:main` are the same command line, but import the whole package first.
"""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from typing import cast


def main() -> None:
    """Run the command line."""
    if 'timm_sk' not in sys.modules:
        sys.modules['timm_sk'] = module_from_spec(cast(ModuleSpec, find_spec('timm_sk')))
    from timm_sk.cli import main

    main()
