"""Train a GPT-2 that grows while it trains: `accelerate launch train.py --config configs/demo.yaml`."""

import sys

from morphing_trainer.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
