"""HuggingFace's Trainer with Schattor: train, checkpoint, resume, and log what the optimizer does.

    python examples/huggingface_trainer.py [DIRECTORY]

A tiny Llama made from a configuration learns to count modulo ten; nothing is downloaded.
"""

import os
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.utils.logging import disable_progress_bar

from schattor.integrations.huggingface import StatsCallback, trainer_optimizer


class Counting(Dataset[dict[str, Tensor]]):
    """Sequences that count up modulo ten by a step that the model has to infer."""

    def __len__(self) -> int:
        """How many sequences there are."""
        return 512

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Sequence number `index`: its first number and its step follow from the index."""
        ids = (index + torch.arange(16) * (1 + index // 10 % 9)) % 10
        return {"input_ids": ids, "labels": ids}


def make_trainer(directory: str, steps: int) -> Trainer:
    """A Trainer that takes its optimizer as a pair: the whole model is handed to Schattor."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=10,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        use_cache=False,
    )
    trainer = Trainer(
        model=LlamaForCausalLM(config),
        args=TrainingArguments(
            output_dir=directory,
            max_steps=steps,
            per_device_train_batch_size=32,
            lr_scheduler_type="cosine",
            warmup_steps=5,
            logging_steps=20,
            save_steps=50,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Counting(),
        optimizer_cls_and_kwargs=trainer_optimizer(lr=1e-2, p=4.0, weight_decay=0.1),
    )
    trainer.add_callback(StatsCallback(trainer, every=2))
    return trainer


def main(directory: str) -> None:
    """Train, then go on from the checkpoint in the middle as after an interruption."""
    torch.set_num_threads(1)  # the model is too small for more to help
    disable_progress_bar()
    trainer = make_trainer(directory, steps=100)
    trainer.train()
    print("the same again from the checkpoint of step 50:")
    resumed = make_trainer(directory, steps=100)
    resumed.train(resume_from_checkpoint=f"{directory}/checkpoint-50")
    pairs = zip(trainer.model.parameters(), resumed.model.parameters(), strict=True)
    same = all(torch.equal(a, b) for a, b in pairs)
    print("resumed weights are", "bit for bit those of the whole run" if same else "different")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(scratch)
