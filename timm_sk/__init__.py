"""timm_sk: selective-kernel networks and ResNeSt for timm. Importing this package registers its models."""

from . import models, ops
from .attention import UnitWeights, attention_weights, record_attention
from .data import shapes
from .inference.deployment import deploy
from .inference.graph_export import export, load_deployed
from .inference.int8 import quantize
from .inference.tune_groups import merge_groups_for_training
from .layers import SelectiveKernel, SplitAttention
from .models.sknet_simclr import simclr_projection
from .torch_hub import hub_entrypoints

__version__ = '0.1.0'

__all__ = [
    'SelectiveKernel',
    'SplitAttention',
    'UnitWeights',
    '__version__',
    'attention_weights',
    'deploy',
    'export',
    'hub_entrypoints',
    'load_deployed',
    'merge_groups_for_training',
    'models',
    'ops',
    'quantize',
    'record_attention',
    'shapes',
    'simclr_projection',
]
