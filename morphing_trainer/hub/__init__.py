"""The Hub: what of a run goes there, its model card, and how it gets there as a whole or not at all."""
