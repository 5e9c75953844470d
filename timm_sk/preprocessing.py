"""What becomes of pictures before a model sees them, as its checkpoint says."""

from statistics import fmean
from typing import Any

import timm.data


def preprocessing(model: Any, *, use_test_size: bool = False, **wanted: Any) -> dict[str, Any]:
    """What timm's validate.py makes of the checkpoint's cfg, for as many channels as the model takes.

    Args:
        model: A model of timm.
        use_test_size: Take the checkpoint's size and crop of tests where it has such.
        **wanted: What `timm.data.resolve_data_config` takes, to be preferred to the checkpoint's.

    Raises:
        ValueError: If the model takes pictures of neither 1 nor 3 channels.
    """
    channels = getattr(model, 'in_chans', 3)
    if channels not in (1, 3):
        raise ValueError(f'Pictures have 1 or 3 channels, the model takes {channels}.')
    config = timm.data.resolve_data_config(dict(wanted, in_chans=channels), model=model, use_test_size=use_test_size)
    config['input_size'] = (channels, *config['input_size'][1:])
    for name in ('mean', 'std'):
        values = tuple(config[name])
        config[name] = values if len(values) == channels else (fmean(values),) * channels
    return config
