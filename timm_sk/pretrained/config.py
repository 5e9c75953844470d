"""The `config.json` that lies beside a checkpoint's weights."""

from typing import Any

from ..checkpoints import Checkpoint

_ELSEWHERE = ('url', 'hf_hub_id')  # where a table's row looks; whoever has the folder has the weights


def hub_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """What timm's `local-dir:` and `hf-hub:` need to know of a checkpoint."""
    cfg = {key: value for key, value in checkpoint.timm_cfg().items() if key not in _ELSEWHERE and value is not None}
    config = dict(architecture=checkpoint.arch, num_classes=checkpoint.num_classes)
    labels = dict(label_names=list(checkpoint.label_names)) if checkpoint.label_names else {}
    return {**config, **labels, 'pretrained_cfg': dict(tag=checkpoint.tag, **cfg)}
