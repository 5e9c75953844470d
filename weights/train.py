"""Train a bundled checkpoint from scratch and write its folder.

    python weights/train.py sknet_atto.digits
    python weights/train.py sknet_atto.shapes

The last weights are the result: nothing is chosen by the held-out part, which is looked at once, at the end.
Settings are chosen by `--validate`, which evaluates on images that are not held out and writes nothing.
"""

from typing import Annotated

import timm
import torch
import torch.nn.functional as F
import typer
from digits import Digits
from export import export, write_card
from recipe import Recipe, Task, TrainingSet
from rich.progress import track
from shapes import Shapes
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from timm_sk.pretrained import sha256_of

TASKS: dict[str, type[Task]] = {'sknet_atto.digits': Digits, 'sknet_atto.shapes': Shapes}
EVALUATION_BATCH = 500  # images; bounds the memory


def train(model: nn.Module, training_set: TrainingSet, recipe: Recipe) -> None:
    """Train in place."""
    optimizer = create_optimizer_v2(model, opt=recipe.opt, lr=recipe.lr, weight_decay=recipe.weight_decay)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=recipe.epochs * training_set.steps,
        warmup_t=recipe.warmup_epochs * training_set.steps,
        warmup_lr_init=recipe.lr / 100,
        t_in_epochs=False,
    )
    model.train()
    for epoch in track(range(recipe.epochs), description='Training'):
        for step, (images, labels) in enumerate(training_set.batches(epoch)):
            scheduler.step_update(epoch * training_set.steps + step)
            loss = F.cross_entropy(model(images), labels, label_smoothing=recipe.smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()


def train_new(name: str, training_set: TrainingSet, recipe: Recipe) -> nn.Module:
    """Train a checkpoint's architecture from its recipe's seed."""
    torch.manual_seed(recipe.seed)
    model = timm.create_model(name)
    train(model, training_set, recipe)
    return model


@torch.inference_mode()
def count_wrong(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    """Number of misclassified images [N, C, H, W], given labels [N]."""
    guesses = torch.cat([model(batch).argmax(dim=1) for batch in images.split(EVALUATION_BATCH)])
    return int((guesses != labels).sum())


def top1(wrong: int, total: int) -> str:
    """In percent."""
    return f'{100 * (1 - wrong / total):.2f}'


def print_validation(name: str, task: Task) -> None:
    """Train on the task's validation splits, and print the number of misclassified validation images."""
    wrong = total = 0
    for training_set, images, labels in task.validation():
        wrong += count_wrong(train_new(name, training_set, task.recipe), images, labels)
        total += len(labels)
    print(f'validation: {wrong} of {total} wrong, top-1 {top1(wrong, total)} %')


def main(
    name: Annotated[str, typer.Argument(help='The checkpoint, as arch.tag.')],
    validate: Annotated[bool, typer.Option('--validate', help='Print the validation accuracy, write nothing.')] = False,
) -> None:
    """Train a bundled checkpoint from scratch and write its folder."""
    if name not in TASKS:
        raise typer.BadParameter(f'no recipe for {name}; there are: {", ".join(TASKS)}')
    task = TASKS[name]()
    if task.threads:
        torch.set_num_threads(task.threads)
    if validate:
        print_validation(name, task)
        return
    model = train_new(name, task.training_set(), task.recipe)
    held_out = task.held_out()
    total = len(held_out.labels)
    wrong = count_wrong(model, held_out.images, held_out.labels)
    task.export_for_tests()
    card = write_card(name, model, vars(task.recipe), top1=top1(wrong, total), wrong=str(wrong), **task.facts(model))
    folder = export(name, model, task.recipe, held_out, card)
    print(f'held-out top-1 {top1(wrong, total)} %: {folder}')
    print('For its row in timm_sk/checkpoints/small.py:')
    print(f"    sha256='{sha256_of(folder / 'model.safetensors')}', top1={top1(wrong, total)}")


if __name__ == '__main__':
    typer.run(main)
