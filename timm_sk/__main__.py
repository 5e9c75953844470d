"""`python -m timm_sk`, the same as the command `timm-sk`."""

from .cli import main

if __name__ == '__main__':
    main()
