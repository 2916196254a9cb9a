"""A detector of transformers with its Trainer and BatchFormer: trained, evaluated, saved, loaded without.

One line adds BatchFormer, another leaves it out of the saved weights; both are marked. RT-DETR learns to
find rectangles that are drawn on noise:

    python examples/detector_trainer.py
"""

import argparse
import tempfile
from typing import Any

import torch
from torch.utils.data import Dataset
from torchvision.ops import box_convert, box_iou
from transformers import (
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessor,
    RTDetrResNetConfig,
    Trainer,
    TrainingArguments,
)

import batchformer as bf

SIZE, CLASSES = 64, 3


class Rectangles(Dataset[dict[str, Any]]):
    """Images `[3, 64, 64]` of noise with one to three rectangles, classed by their bright channel."""

    def __init__(self, images: int, seed: int) -> None:
        self._images, self._seed = images, seed

    def __len__(self) -> int:
        return self._images

    def __getitem__(self, index: int) -> dict[str, Any]:
        """An image, the classes `[M]`, and the boxes `[M, 4]` as centre and size, relative to the image."""
        draws = torch.Generator().manual_seed(1000 * self._seed + index)
        image = 0.3 * torch.rand(3, SIZE, SIZE, generator=draws)
        objects = int(torch.randint(1, 4, (), generator=draws))
        classes = torch.randint(CLASSES, (objects,), generator=draws)
        sizes = torch.randint(12, 28, (objects, 2), generator=draws)
        corners = (torch.rand(objects, 2, generator=draws) * (SIZE - sizes)).long()
        for label, (x, y), (width, height) in zip(classes, corners, sizes, strict=True):
            image[label, y : y + height, x : x + width] = 1.0
        boxes = torch.cat([corners + sizes / 2, sizes], dim=1) / SIZE
        return {"pixel_values": image, "labels": {"class_labels": classes, "boxes": boxes}}


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch: images `[N, 3, 64, 64]` and a list of N labels."""
    images = torch.stack([each["pixel_values"] for each in samples])
    return {"pixel_values": images, "labels": [each["labels"] for each in samples]}


def build() -> RTDetrForObjectDetection:
    """A small RT-DETR, not trained."""
    widths = [32, 64, 96, 128]
    backbone = RTDetrResNetConfig(
        embedding_size=32,
        hidden_sizes=widths,
        depths=[1] * 4,
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        encoder_hidden_dim=64,
        encoder_in_channels=widths[1:],
        encoder_ffn_dim=128,
        d_model=64,
        decoder_in_channels=[64] * 3,
        decoder_ffn_dim=128,
        decoder_layers=2,
        num_queries=20,
        num_denoising=20,
        num_labels=CLASSES,
        freeze_backbone_batch_norms=False,
    )
    return RTDetrForObjectDetection(config)


def share_found(model: RTDetrForObjectDetection, images: Rectangles) -> float:
    """The share of rectangles that a detection of their class overlaps by more than half."""
    model.eval()
    found, processor = [], RTDetrImageProcessor()
    for sample in (images[index] for index in range(len(images))):
        with torch.no_grad():
            output = model(pixel_values=sample["pixel_values"][None])
        seen = processor.post_process_object_detection(output, threshold=0.4)[0]
        boxes = box_convert(sample["labels"]["boxes"], "cxcywh", "xyxy")
        overlaps = box_iou(boxes, seen["boxes"])  # [M, detections]
        same_class = sample["labels"]["class_labels"][:, None] == seen["labels"][None, :]
        found.append(((overlaps > 0.5) & same_class).any(dim=1))
    return float(torch.cat(found).float().mean())


def main(epochs: int, images: int) -> None:
    """Train, evaluate, save, and evaluate the stock model with the saved weights."""
    torch.manual_seed(0)
    model = build()
    attachment = bf.attach(model)  # <- BatchFormer
    print(attachment)
    unseen = Rectangles(64, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(
                folder,
                per_device_train_batch_size=16,
                num_train_epochs=epochs,
                learning_rate=1e-3,
                warmup_steps=20,
                max_grad_norm=0.1,
                remove_unused_columns=False,
                dataloader_pin_memory=False,
                report_to="none",
                save_strategy="no",
                logging_strategy="epoch",
            ),
            data_collator=collate,
            train_dataset=Rectangles(images, seed=0),
            eval_dataset=unseen,
        )
        trainer.train()
        print(f"loss of unseen images: {trainer.evaluate()['eval_loss']:.3f}")
        print(f"found by the model with BatchFormer, in evaluation: {share_found(model, unseen):.1%}")
        model.save_pretrained(folder, state_dict=attachment.stock_state_dict())  # <- without it
        stock = RTDetrForObjectDetection.from_pretrained(folder)
    print(f"found by the stock model, loaded from the file:     {share_found(stock, unseen):.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="RT-DETR with the Trainer, on drawn rectangles.")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--images", type=int, default=256)
    options = parser.parse_args()
    main(options.epochs, options.images)
