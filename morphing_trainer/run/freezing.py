"""A run that begins with everything frozen but what is named."""

from __future__ import annotations

from transformers import PreTrainedModel

from morphing_trainer.config import MorphingConfig
from morphing_trainer.errors import ConfigError, OperationError
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.operations.components import resolve


def frozen_but(spec: ModelSpec, components: str | list[str] | None) -> ModelSpec:
    """The model with everything frozen but `components` and the adapters.

    Args:
        components: as in a schedule, `attn.*`, `mlp.0-3`, `ln_f`; None for none.

    Raises:
        ConfigError: if one of them names nothing in this model, or nothing would be left to train.
    """
    named = [components] if isinstance(components, str) else components or []
    try:
        chosen = resolve(spec, named)
    except OperationError as error:
        raise ConfigError(f"train_only: {error}") from None
    base = {name for name in spec.shapes if spec.adapter_at(name) is None}
    new = spec.evolve((base | spec.frozen).difference(*chosen.values()))
    if new.trainable == 0:
        raise ConfigError(
            "default_freeze: nothing would be left to train; name components in train_only, or begin with adapters."
        )
    return new


def freeze_by_default(model: PreTrainedModel, args: MorphingConfig) -> None:
    """Freeze the model's parameters as `default_freeze` and `train_only` say.

    Raises:
        ConfigError: see `frozen_but`.
    """
    if not args.default_freeze:
        return
    spec = frozen_but(ModelSpec.of(model), args.train_only)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in spec.untrained)
    model.frozen_hosts = sorted(spec.frozen & spec.hosts)  # type: ignore[assignment]
