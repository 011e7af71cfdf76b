"""What `train.py` is measured against: the same training by a script of plain `transformers`, as short as can be.

    python benchmarks/plain_train.py DATA MODEL OUTPUT BATCH

The tokens are read from the prepared folder DATA, tokenizer and model are loaded from theirs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, GPT2LMHeadModel, Trainer, TrainingArguments, default_data_collator


class Samples(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Blocks of a prepared folder, read from its file."""

    def __init__(self, folder: Path) -> None:
        meta = json.loads((folder / "meta.json").read_text())
        tokens = np.memmap(folder / "tokens.bin", meta["arrays"]["tokens"]["dtype"], "r")
        whole = len(tokens) // meta["block_size"] * meta["block_size"]
        self.blocks = tokens[:whole].reshape(-1, meta["block_size"])

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = torch.from_numpy(self.blocks[index].astype(np.int64))
        return {"input_ids": row, "labels": row}


def main() -> None:
    data, model, output, batch = sys.argv[1:]
    arguments: dict[str, Any] = {
        "max_steps": 1,
        "per_device_train_batch_size": int(batch),
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
    }
    loaded = GPT2LMHeadModel.from_pretrained(model)
    loaded.loss_type = "ForCausalLM"  # else `Trainer` divides by labels that the loss leaves out; see `load_model`
    Trainer(
        loaded,
        TrainingArguments(output, **arguments),
        train_dataset=Samples(Path(data) / "train"),
        data_collator=default_data_collator,
        processing_class=AutoTokenizer.from_pretrained(Path(data) / "tokenizer"),
    ).train()


if __name__ == "__main__":
    main()
