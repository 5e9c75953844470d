"""Fine-tune with Hugging Face Accelerate: `accelerate launch accelerate_finetune.py DATA`.

DATA/train and DATA/validation have a folder per class. How many GPUs, and in which precision, is what
`accelerate config` or the flags of `accelerate launch` say; one process needs neither: `python` will do.
"""

import argparse

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import timm_sk  # noqa: F401  (registers the models)


def main() -> None:
    """Read the command line, train, validate, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data')
    parser.add_argument('--model', default='sknet_atto.shapes')
    parser.add_argument('--epochs', type=int, default=10)
    parser.add_argument('--batch-size', type=int, default=16, help='of one process')
    parser.add_argument('--lr', type=float, default=1e-3)
    parser.add_argument('--out', default='finetuned.safetensors')
    args = parser.parse_args()

    accelerator = Accelerator()
    set_seed(42)
    train_set, val_set = (timm.data.create_dataset('', args.data, split) for split in ('train', 'validation'))
    model = timm.create_model(args.model, pretrained=True, num_classes=len(train_set.reader.class_to_idx))
    config = timm.data.resolve_model_data_config(model)
    train_set.transform = timm.data.create_transform(**config, is_training=True, scale=(0.5, 1))
    val_set.transform = timm.data.create_transform(**config)
    train_loader = DataLoader(train_set, args.batch_size, shuffle=True, drop_last=True, num_workers=2)
    val_loader = DataLoader(val_set, args.batch_size, num_workers=2)
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.epochs * len(train_loader))
    model, optimizer, scheduler, train_loader, val_loader = accelerator.prepare(
        model, optimizer, scheduler, train_loader, val_loader
    )

    for epoch in range(1, args.epochs + 1):
        model.train()
        for images, labels in train_loader:
            loss = cross_entropy(model(images), labels)
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        model.eval()
        correct = 0
        with torch.inference_mode():
            for images, labels in val_loader:
                guesses, truths = accelerator.gather_for_metrics((model(images).argmax(1), labels))
                correct += (guesses == truths).sum().item()  # what fills the last batch up is not counted
        accelerator.print(f'epoch {epoch}: loss {loss:.3f}, accuracy {correct / len(val_set):.4f}')
    accelerator.save(accelerator.get_state_dict(model), args.out, safe_serialization=True)
    accelerator.end_training()


if __name__ == '__main__':
    main()
