"""One training step: forward and backward of a batch, and the optimizer's step."""

from contextlib import nullcontext

from timm.models import model_parameters
from timm.utils import dispatch_clip_grad
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from .config import Config
from .trainee import Trainee


def train_step(
    trainee: Trainee, images: Tensor, targets: Tensor, *, config: Config, batches: int, is_last: bool, updates: int
) -> tuple[Tensor, Tensor]:
    """Add a batch's gradients, and on the last batch of a step change the weights.

    Args:
        trainee: What trains.
        images: Pictures [B, C, H, W] as the model takes them.
        targets: Labels [B], or shares of the classes [B, K].
        config: The settings.
        batches: Batches whose gradients make this step.
        is_last: Whether this is the last of them.
        updates: Steps of the optimizer before this one.

    Returns:
        The loss, a number, and the logits [B, K], both without gradients.
    """
    net = trainee.net
    # the processes' gradients are averaged once a step
    alone = net.no_sync() if isinstance(net, DistributedDataParallel) and not is_last else nullcontext()
    with alone:
        with trainee.autocast():
            logits = net(images)
            loss = trainee.loss(logits, targets)
        trainee.scaler.scale(loss / batches).backward()
    if is_last:
        if config.clip_grad is not None:
            trainee.scaler.unscale_(trainee.optimizer)
            clipped = model_parameters(trainee.model, exclude_head=config.clip_mode == 'agc')
            dispatch_clip_grad(clipped, config.clip_grad, mode=config.clip_mode)
        trainee.scaler.step(trainee.optimizer)
        trainee.scaler.update()
        trainee.optimizer.zero_grad()
        if trainee.ema is not None:
            trainee.ema.update(trainee.model, step=updates + 1)
        if trainee.scheduler is not None:
            trainee.scheduler.step_update(updates + 1)
    return loss.detach(), logits.detach().float()
