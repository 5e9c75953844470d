"""Fine-tune in plain PyTorch: `python plain_loop.py DATA`, where DATA/train and DATA/validation have class folders."""

import argparse

import timm
import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import timm_sk  # noqa: F401  (registers the models)

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('data')
    parser.add_argument('--model', default='sknet_atto.shapes')
    parser.add_argument('--epochs', type=int, default=10)
    parser.add_argument('--out', default='finetuned.safetensors')
    args = parser.parse_args()

    timm.utils.random_seed(42)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    train_set, val_set = (timm.data.create_dataset('', args.data, split) for split in ('train', 'validation'))
    model = timm.create_model(args.model, pretrained=True, num_classes=len(train_set.reader.class_to_idx)).to(device)
    config = timm.data.resolve_model_data_config(model)
    train_set.transform = timm.data.create_transform(**config, is_training=True, scale=(0.5, 1))
    val_set.transform = timm.data.create_transform(**config)
    train_loader = DataLoader(train_set, batch_size=16, shuffle=True, drop_last=True, num_workers=2)
    val_loader = DataLoader(val_set, batch_size=16, num_workers=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)

    for epoch in range(1, args.epochs + 1):
        model.train()
        for images, labels in train_loader:
            loss = cross_entropy(model(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
        model.eval()
        with torch.inference_mode():
            correct = sum((model(images.to(device)).argmax(1).cpu() == labels).sum() for images, labels in val_loader)
        print(f'epoch {epoch}: loss {loss:.3f}, accuracy {correct / len(val_set):.4f}')
    save_file(model.state_dict(), args.out)
