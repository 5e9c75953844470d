"""The `config.json` beside a checkpoint's weights."""

from typing import Any

from ..checkpoints import Checkpoint


def hub_config(checkpoint: Checkpoint, **of_model: Any) -> dict[str, Any]:
    """The config that timm's `local-dir:` and `hf-hub:`, and transformers, read.

    Unlike the config of timm's `save_for_hf`, it has no `model_args`, which the architecture implies and whose
    `num_classes` transformers 5 rejects, and no defaults for fields that are not established.

    Args:
        checkpoint: The table's row.
        **of_model: Fields that depend on the model, such as `num_features`.
    """
    labels = dict(label_names=list(checkpoint.label_names)) if checkpoint.label_names else {}
    fields = dict(
        tag=checkpoint.tag,
        custom_load=False,
        input_size=checkpoint.input_size,
        fixed_input_size=False,
        interpolation=checkpoint.interpolation,
        crop_pct=checkpoint.crop_pct,
        crop_mode='center',
        mean=checkpoint.mean,
        std=checkpoint.std,
        num_classes=checkpoint.num_classes,
        **labels,
        pool_size=checkpoint.pool_size,
        first_conv=checkpoint.first_conv,
        classifier=checkpoint.classifier,
        license=checkpoint.licence,
    )
    return dict(
        architecture=checkpoint.arch,
        num_classes=checkpoint.num_classes,
        **of_model,
        **labels,
        pretrained_cfg={key: value for key, value in fields.items() if value is not None},
    )
