"""Weights in shards: FSDP2 and one optimizer, on as many processes as there are.

    torchrun --nproc-per-node 2 examples/distributed.py

Each rank keeps a shard of every weight. A matrix is whole on one rank alone, with its momentum,
and another matrix on another: the work of directions is shared too. On GPUs where there are as
many, else on processors.
"""

from __future__ import annotations

import os
import shutil
import tempfile

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import schattor

EPOCHS, BATCH = 8, 64


def make(device: torch.device) -> tuple[nn.Module, schattor.Schattor]:
    """A model in shards, and its optimizer: built after `fully_shard`, as any is."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    torch.manual_seed(0)
    layers = [nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 10)]
    model = nn.Sequential(*layers).to(device)
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, schattor.Schattor(model, lr=3e-3, p=4.0, weight_decay=0.01)


def train(
    model: nn.Module, optimizer: schattor.Schattor, x: Tensor, y: Tensor, epochs: range
) -> None:
    """Each rank takes its part of every batch."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for epoch in epochs:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        for chosen in order[: len(x) // BATCH * BATCH].view(-1, BATCH):
            part = chosen[rank * BATCH // ranks : (rank + 1) * BATCH // ranks].to(x.device)
            nn.functional.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
            optimizer.zero_grad()


def main() -> None:
    """Train half of the epochs, save, and go on in a new model."""
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    gpus = torch.cuda.device_count() >= ranks
    device = torch.device("cuda", rank) if gpus else torch.device("cpu")
    dist.init_process_group("nccl" if gpus else "gloo")
    if gpus:
        torch.cuda.set_device(device)
    images, labels = (torch.as_tensor(each) for each in load_digits(return_X_y=True))
    x, y = images.float().to(device) / 16, labels.to(device)
    model, optimizer = make(device)
    train(model, optimizer, x, y, range(EPOCHS // 2))

    folder = [tempfile.mkdtemp() if rank == 0 else ""]
    dist.broadcast_object_list(folder)
    weights, state = get_state_dict(model, optimizer)
    checkpoint.save({"model": weights, "optimizer": state}, checkpoint_id=folder[0])

    model, optimizer = make(device)
    weights, state = get_state_dict(model, optimizer)
    checkpoint.load({"model": weights, "optimizer": state}, checkpoint_id=folder[0])
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    train(model, optimizer, x, y, range(EPOCHS // 2, EPOCHS))

    right = (model(x).argmax(1) == y).float().mean().item()
    owned: list[list[str]] = [[] for _ in range(ranks)]
    dist.all_gather_object(owned, [*optimizer.stats()["blocks"]])
    if rank == 0:
        shutil.rmtree(folder[0])
        print(f"{right:.1%} of all images are right")
        for each, names in enumerate(owned):
            print(f"rank {each} computes {', '.join(names)}", flush=True)
    dist.barrier()
    if not gpus:  # gloo's threads now and then abort a process that takes them down
        os._exit(0)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
