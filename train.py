"""Train a GPT-2 that grows while it trains: `accelerate launch train.py --config configs/demo.yaml`."""

import gc
import sys

from morphing_trainer.cli.importing import imported

if __name__ == "__main__":
    train = imported("morphing_trainer.cli.train")
    gc.freeze()  # what was imported is never garbage: no collection need look at it
    sys.exit(train.main())
