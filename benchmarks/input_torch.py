"""The peer of input_pipeline.py: torch's DataLoader with open_clip's evaluation transform.

python benchmarks/input_torch.py FOLDER FORM BATCH BATCHES CALLS

torchvision's transforms are written out (it is large, and only these lines of it run): Resize, CenterCrop, ToTensor,
Normalize as in torchvision 0.2x on Pillow pictures, after open_clip's `image_transform`. FORM "uint8" leaves the
last two to the device, as one would write it by hand for speed.
"""

from __future__ import annotations

import io
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.input_pictures import read
from benchmarks.measure import hand_over

SIZE = 224
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # open_clip's OPENAI_DATASET_*


def resize(picture: Image.Image) -> Image.Image:
    """torchvision.transforms.Resize(224, bicubic): the shorter side, in proportion."""
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    other = int(SIZE * long / short)
    size = (SIZE, other) if width <= height else (other, SIZE)
    return picture.resize(size, Image.Resampling.BICUBIC)


def center_crop(picture: Image.Image) -> Image.Image:
    """torchvision.transforms.CenterCrop(224)."""
    left, top = round((picture.width - SIZE) / 2), round((picture.height - SIZE) / 2)
    return picture.crop((left, top, left + SIZE, top + SIZE))


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """torchvision.transforms.ToTensor."""
    pixels = torch.from_numpy(np.array(picture, np.uint8, copy=True))
    return pixels.permute((2, 0, 1)).contiguous().to(torch.get_default_dtype()).div(255)


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    """torchvision.transforms.Normalize."""
    mean = torch.as_tensor(MEAN, dtype=pixels.dtype).view(-1, 1, 1)
    std = torch.as_tensor(STD, dtype=pixels.dtype).view(-1, 1, 1)
    return pixels.clone().sub_(mean).div_(std)


class Pictures(Dataset):
    """As many pictures as asked for, from the files over and over."""

    def __init__(self, files: list[bytes], count: int, form: str):
        self.files, self.count, self.form = files, count, form

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        picture = Image.open(io.BytesIO(self.files[index % len(self.files)])).convert("RGB")
        picture = center_crop(resize(picture))
        return normalize(to_tensor(picture)) if self.form == "open_clip" else torch.from_numpy(np.array(picture))


def seconds_of(pids: list[int]) -> float:
    """CPU seconds of this process and of `pids`, which are running."""
    ticks = 0
    for pid in pids:
        after_name = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(after_name[11]) + int(after_name[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def main(folder: Path, form: str, batch: int, batches: int, calls: int) -> None:
    """Times `batches` batches per call in a stream that is under way; keeps the first batch for comparison."""
    workers = int(os.environ["MMJAX_BENCH_THREADS"])
    pictures = Pictures(read(folder), batch * (4 + batches * calls + 4), form)
    stream = iter(DataLoader(pictures, batch_size=batch, num_workers=workers))
    first = next(stream)
    if form == "open_clip":
        first = (first * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)).permute(0, 2, 3, 1) * 255
    np.save(folder / f"{form}.npy", first.round().clamp(0, 255).to(torch.uint8).numpy())
    for _ in range(3):
        next(stream)
    found: dict[str, list[float]] = {"wall_s": [], "cpu_s": []}
    pids = [worker.pid for worker in stream._workers]
    for _ in range(calls):
        wall, cpu = time.perf_counter(), seconds_of(pids)
        for _ in range(batches):
            next(stream)
        found["wall_s"].append(time.perf_counter() - wall)
        found["cpu_s"].append(seconds_of(pids) - cpu)
    hand_over(found | {"torch": torch.__version__, "workers": workers})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6]))
