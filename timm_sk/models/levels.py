"""Features of a trunk's levels, for trunks on which timm's own methods do not work."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d, create_classifier
from timm.models import checkpoint_seq
from torch import Tensor, nn


class LevelFeatures(nn.Module):
    """The methods by which timm takes features from the levels of a trunk: the stem and the stages.

    Attributes:
        levels: Names of the modules whose outputs are the levels' features.
        stages: Those that `set_grad_checkpointing` recomputes.
        last: Name of a module between the last level and the head, or ''.
        feature_info: timm's description of each level.
    """

    levels: tuple[str, ...]
    stages: tuple[str, ...]
    last = ''
    feature_info: list[dict[str, Any]]
    grad_checkpointing: bool

    def modules_of(self, level: str) -> tuple[str, ...]:
        """Names of a level's modules in their order; a step for subclasses to override."""
        return (level,)

    def run_level(self, level: str, x: Tensor) -> Tensor:
        """Compute one level from the one before; a step for subclasses to override."""
        for name in self.modules_of(level):
            module = self.get_submodule(name)
            x = checkpoint_seq(module, x) if self.grad_checkpointing and name in self.stages else module(x)
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """Run all levels: [B, in_chans, H, W] -> [B, num_features, H', W']."""
        for name in self.levels:
            x = self.run_level(name, x)
        return getattr(self, self.last)(x) if self.last else x

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the last features, unless `intermediates_only`, and the features of levels.

        Args:
            x: Images [B, in_chans, H, W].
            indices: Levels to return: the last n, a sequence, or None for all.
            norm: No effect: there is no norm apart from those within the levels.
            stop_early: Do not run what comes after the last of these levels.
            output_fmt: 'NCHW'.
            intermediates_only: Return the levels' features alone.

        Raises:
            ValueError: If a level does not exist, or for another `output_fmt`.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f'output_fmt must be "NCHW", got "{output_fmt}": permute the outputs instead.')
        taken = self._take_levels(indices)
        intermediates = []
        for level, name in enumerate(self.levels[: max(taken) + 1] if stop_early else self.levels):
            x = self.run_level(name, x)
            if level in taken:
                intermediates.append(x)
        if intermediates_only:
            return intermediates
        stopped = stop_early and max(taken) + 1 < len(self.levels)
        return (getattr(self, self.last)(x) if self.last and not stopped else x), intermediates

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the layers after the last of these levels, and return the levels as non-negative numbers."""
        taken = self._take_levels(indices)
        final = max(taken)
        for name in (name for level in self.levels[final + 1 :] for name in self.modules_of(level)):
            setattr(self, name, nn.Sequential())
        if prune_head or final + 1 < len(self.levels) or (prune_norm and self.last):
            if self.last:
                setattr(self, self.last, nn.Sequential())
            self.num_features = self.head_hidden_size = self.feature_info[final]['num_chs']
            self.reset_classifier(0, '')  # type: ignore[operator]  # of the trunk
        return taken

    def _take_levels(self, indices: int | Sequence[int] | None) -> list[int]:
        """Spell out levels as numbers from 0: None for all, an int for the last n, negative ones from the end."""
        count = len(self.levels)
        if indices is None:
            indices = count
        asked = list(range(-indices, 0)) if isinstance(indices, int) else list(indices)
        if not asked or min(asked) < -count or max(asked) >= count:
            raise ValueError(f'indices must name some of the {count} levels (0 to {count - 1}), got {indices}.')
        return [level % count for level in asked]


class LevelClassifier(LevelFeatures):
    """Levels with a pool, dropout and a linear classifier, and timm's methods for them.

    Attributes:
        classifier: Name of the classifier's module.
        num_classes: Number of classes.
        num_features: Channels that reach the pool.
        drop_rate: Dropout rate before the classifier.
        global_pool: The pool, which `reset_classifier` makes.
    """

    classifier: str
    num_classes: int
    num_features: int
    drop_rate: float
    global_pool: SelectAdaptivePool2d

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        return self.get_submodule(self.classifier)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one on the model's device and in its dtype; None keeps the pooling."""
        parameter = next(self.parameters())
        self.num_classes = num_classes
        self.global_pool, classifier = create_classifier(
            self.num_features,
            num_classes,
            pool_type=self.global_pool.pool_type if global_pool is None else global_pool,
            device=parameter.device,
            dtype=parameter.dtype,
        )
        setattr(self, self.classifier, classifier)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.global_pool.train(self.training)
        classifier.train(self.training)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pooling, dropout and, unless `pre_logits`, the classifier: [B, num_features, H, W] -> [B, num_classes]."""
        x = self.global_pool(x)
        if self.drop_rate > 0.0:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
