"""timm_sk: selective-kernel networks and ResNeSt for timm. Importing this package registers its models."""

from . import models, ops
from .attention import UnitWeights, attention_weights, record_attention
from .catalog import CheckpointDescription, describe_checkpoint, list_checkpoints, list_models
from .data import shapes
from .evaluation.metrics import Evaluation
from .evaluation.validation import evaluate
from .factory import load
from .inference.deployment import deploy
from .inference.graph_export import export, load_deployed
from .inference.int8 import quantize
from .inference.prediction import Prediction, embed, predict
from .inference.tune_groups import merge_groups_for_training
from .layers import SelectiveKernel, SplitAttention
from .models.sknet_simclr import simclr_projection
from .torch_hub import hub_entrypoints
from .version import __version__

__all__ = [
    'CheckpointDescription',
    'Evaluation',
    'Prediction',
    'SelectiveKernel',
    'SplitAttention',
    'UnitWeights',
    '__version__',
    'attention_weights',
    'deploy',
    'describe_checkpoint',
    'embed',
    'evaluate',
    'export',
    'hub_entrypoints',
    'list_checkpoints',
    'list_models',
    'load',
    'load_deployed',
    'merge_groups_for_training',
    'models',
    'ops',
    'predict',
    'quantize',
    'record_attention',
    'shapes',
    'simclr_projection',
]
