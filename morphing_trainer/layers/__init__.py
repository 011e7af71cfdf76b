"""What `MorphingTrainer` changes in `transformers.Trainer`, one concern a layer, each built on the one before.

Trainer -> optimizing -> checkpointing -> guarding -> recovering -> segments -> evaluating -> observing -> operating
"""
