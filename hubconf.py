"""Entry points for `torch.hub`: `torch.hub.load('<repo>', 'skresnet34')` returns a model that is ready to call."""

dependencies = ['torch', 'timm', 'huggingface_hub', 'safetensors']

import timm_sk  # noqa: E402

globals().update(timm_sk.hub_entrypoints())
