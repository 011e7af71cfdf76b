"""Train a GPT-2 that grows while it trains: `accelerate launch train.py --config configs/demo.yaml`."""

import gc
import sys

if __name__ == "__main__":
    gc.disable()  # what modules make stays: to look through it again and again is a sixth of the time of importing it
    from morphing_trainer.cli.train import main

    gc.freeze()
    gc.enable()
    sys.exit(main())
