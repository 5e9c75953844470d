"""Fine-tune with Lightning, on a CPU or a GPU: `python lightning_finetune.py DATA`.

DATA/train and DATA/validation have a folder per class. `--precision bf16-mixed` for mixed precision.
"""

import argparse

import lightning as L
import timm
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

import timm_sk  # noqa: F401  (registers the models)


class FineTuning(L.LightningModule):
    """A pretrained model with a new classifier, all of it trained."""

    def __init__(self, model: str, num_classes: int, lr: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = timm.create_model(model, pretrained=True, num_classes=num_classes)
        self.accuracy = MulticlassAccuracy(num_classes, average='micro')

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        loss = cross_entropy(self.model(images), labels)
        self.log('loss', loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        images, labels = batch
        self.accuracy(self.model(images), labels)
        self.log('accuracy', self.accuracy, prog_bar=True)  # over the whole epoch

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), self.hparams.lr, weight_decay=0.05)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.hparams.lr, total_steps=steps)
        return dict(optimizer=optimizer, lr_scheduler=dict(scheduler=schedule, interval='step'))


class Pictures(L.LightningDataModule):
    """The two parts of a folder, transformed as the model's weights want it."""

    def __init__(self, data: str, batch_size: int = 16) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.train_set, self.val_set = (timm.data.create_dataset('', data, split) for split in ('train', 'validation'))
        self.num_classes = len(self.train_set.reader.class_to_idx)

    def transform_for(self, model: torch.nn.Module) -> None:
        config = timm.data.resolve_model_data_config(model)
        self.train_set.transform = timm.data.create_transform(**config, is_training=True, scale=(0.5, 1))
        self.val_set.transform = timm.data.create_transform(**config)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(
            self.train_set, self.batch_size, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True
        )

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val_set, self.batch_size, num_workers=2, persistent_workers=True)


def main() -> None:
    """Read the command line, train, validate, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data')
    parser.add_argument('--model', default='sknet_atto.shapes')
    parser.add_argument('--epochs', type=int, default=10)
    parser.add_argument('--precision', default='32-true')
    parser.add_argument('--out', default='finetuned.safetensors')
    args = parser.parse_args()

    L.seed_everything(42, workers=True)
    pictures = Pictures(args.data)
    module = FineTuning(args.model, pictures.num_classes)
    pictures.transform_for(module.model)
    best = ModelCheckpoint(monitor='accuracy', mode='max')
    trainer = L.Trainer(
        max_epochs=args.epochs, devices=1, precision=args.precision, callbacks=[best], log_every_n_steps=5
    )
    trainer.fit(module, pictures)
    module = FineTuning.load_from_checkpoint(best.best_model_path, map_location='cpu')
    (found,) = trainer.validate(module, pictures)
    print(f'accuracy {found["accuracy"]:.4f}')
    save_file(module.model.state_dict(), args.out)


if __name__ == '__main__':
    main()
