"""timm_sk: selective-kernel networks and ResNeSt for timm. Importing this package registers its models."""

from . import models, ops
from .attention import UnitWeights, attention_weights, record_attention
from .deploy import deploy
from .hub import hub_entrypoints
from .layers import SelectiveKernel, SplitAttention
from .training_groups import merge_groups_for_training

__version__ = '0.1.0'

__all__ = [
    'SelectiveKernel',
    'SplitAttention',
    'UnitWeights',
    '__version__',
    'attention_weights',
    'deploy',
    'hub_entrypoints',
    'merge_groups_for_training',
    'models',
    'ops',
    'record_attention',
]
