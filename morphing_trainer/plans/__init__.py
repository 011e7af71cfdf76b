"""Training plans: stages with their own data and length, one after the other."""

from morphing_trainer.plans.plan import Plan, load_plan

__all__ = ["Plan", "load_plan"]
