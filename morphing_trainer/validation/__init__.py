"""What an evaluation says beside the loss: how well tokens and words are predicted, and one example as text."""
