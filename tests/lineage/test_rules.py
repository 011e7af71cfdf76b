"""The two generic rules on real models and on an architecture that is made up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from morphing_trainer.architectures import GPT2, Architecture, reads, writes
from morphing_trainer.engine import dressed
from morphing_trainer.lineage import (
    NEWBORN,
    Descent,
    Fill,
    Lineage,
    ModelSpec,
    Newborn,
    Site,
    Units,
    regather,
    resize,
    transplant_weights,
)
from tests.support import tiny_config, tiny_model


def _logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(16)[None]).logits


def test_fused_axes_permuted_head_by_head_keep_the_function() -> None:
    """q|k|v are gathered part by part; the projection that reads the heads is gathered alike."""
    model = tiny_model().double()
    spec = ModelSpec.of(model)
    heads = torch.cat([torch.arange(8, 16), torch.arange(8)])  # swap the two heads
    mixed = heads[torch.randperm(16, generator=torch.Generator().manual_seed(0))]
    for source, stays in ((heads, True), (mixed, False)):
        lineage = resize(spec, spec, "head", [Units(source, torch.ones(16).double())] * 2, Fill())
        new = dressed(spec, transplant_weights(lineage, dict(model.named_parameters())))
        assert not torch.equal(new.transformer.h[0].attn.c_attn.weight, model.transformer.h[0].attn.c_attn.weight)
        assert torch.allclose(_logits(new), _logits(model), rtol=0, atol=1e-12) == stays


@dataclass(frozen=True)
class Toy:
    """As much of a description as the rules look at."""

    architecture: Architecture
    shapes: dict[str, torch.Size]

    def adapter_at(self, name: str) -> None:
        """It has none."""


TOY = Architecture(
    model_type="toy",
    model_class="Toy",
    parameters={
        "embed": (reads("vocab"), writes("model")),
        "layer.{layer}.qkv": (reads("model"), writes("unit", parts=3)),
        "layer.{layer}.gain": (writes("unit"),),
        "layer.{layer}.mix": (reads("unit"), writes("unit")),
        "layer.{layer}.out": (reads("unit"), writes("model")),
    },
    components={},
    adaptable={},
    embeddings=frozenset(),
    tied={},
    residual_writers=("layer.{layer}.out",),
    depth="layers",
    width=lambda config: 0,
    with_width=lambda config, units: None,
    depends_on_depth=lambda config: None,
)


def _toy(units: int) -> Any:
    each = {"qkv": (2, 3 * units), "gain": (units,), "mix": (units, units), "out": (units, 2)}
    shapes = {"embed": torch.Size((5, 2))}
    shapes |= {f"layer.{layer}.{name}": torch.Size(shape) for layer in range(2) for name, shape in each.items()}
    return Toy(TOY, shapes)


def test_roles_of_axes_on_a_made_up_architecture() -> None:
    share = torch.tensor([0.25, 1.0, 1.0, 0.75, 1.0], dtype=torch.float64)
    units = Units(torch.tensor([0, 1, 2, 0, NEWBORN]), share, noise=Fill(0.1, 2))
    other = Units(torch.tensor([0, 1, 2, 2, 1]), torch.tensor([1.0, 0.5, 0.5, 0.5, 0.5], dtype=torch.float64))
    lineage = resize(_toy(3), _toy(5), "unit", [units, other], Fill(0.02, 1))
    assert list(lineage.origins) == list(_toy(5).shapes)

    def maps(name: str) -> Any:
        return lineage.origins[name].maps  # type: ignore[union-attr]

    assert maps("embed") == ()
    (qkv,) = maps("layer.0.qkv")
    assert qkv.dim == 1
    assert qkv.source.tolist() == [0, 1, 2, 0, NEWBORN, 3, 4, 5, 3, NEWBORN, 6, 7, 8, 6, NEWBORN]
    assert (qkv.weight, qkv.grad.tolist()) == (None, share.tolist() * 3)
    (gain,) = maps("layer.0.gain")
    assert (gain.source.tolist(), gain.weight, gain.grad.tolist()) == (units.source.tolist(), None, share.tolist())
    read, written = maps("layer.0.mix")
    assert (read.dim, read.weight.tolist(), read.grad) == (0, share.tolist(), None)
    assert (written.dim, written.weight, written.grad.tolist()) == (1, None, share.tolist())
    (out,) = maps("layer.1.out")
    assert (out.dim, out.source.tolist(), out.weight.tolist()) == (0, other.source.tolist(), other.share.tolist())
    origins: Any = lineage.origins
    assert [origins[f"layer.0.{name}"].fill.std for name in ("qkv", "gain", "mix", "out")] == [0.02, 0.0, 0.02, 0.0]
    assert [origins[f"layer.0.{name}"].noise is not None for name in ("qkv", "gain", "mix", "out")] == [
        True,
        False,
        True,
        False,
    ]
    assert origins["layer.1.qkv"].noise is None


def test_the_table_of_gpt2_names_every_parameter_of_an_adapter() -> None:
    for tied in (True, False):
        spec = ModelSpec(tiny_config(tie_word_embeddings=tied))
        modules = [module for kind in spec.architecture.adaptable for module in spec.modules(kind)]
        full = spec.readapted({module: Site(5, 1) for module in modules if not (tied and module == "lm_head")})
        sizes = {"vocab": 32, "position": 16, "hidden": 16, "head": 16, "mlp": 64, "rank": 5}
        for name, shape in full.shapes.items():
            key, layer = GPT2.locate(name)
            assert [sizes[axis.name] * axis.parts for axis in GPT2.tensors[key]] == list(shape), name
            assert (layer is None) == (".h." not in name)
            adapter = full.adapter_at(name)
            assert (adapter is not None) == (".lora_" in name)
            if adapter is not None:
                assert name in (adapter.a, adapter.b)
                assert {adapter.drawn, adapter.zeroed} == {adapter.a, adapter.b}
                assert adapter.host in full.hosts


def test_regather_names_ancestors_layer_by_layer() -> None:
    spec = ModelSpec.of(tiny_model())
    lineage = regather(spec, spec.restacked([1, 0, 1]), [1, 0, 1], identity={2})
    ancestors = {name: lineage.ancestor(name) for name in lineage.origins}
    assert ancestors["transformer.h.0.ln_1.weight"] == "transformer.h.1.ln_1.weight"
    assert ancestors["transformer.h.1.mlp.c_proj.bias"] == "transformer.h.0.mlp.c_proj.bias"
    assert ancestors["transformer.wte.weight"] == "transformer.wte.weight"
    last = {name.split("h.2.")[1]: origin for name, origin in lineage.origins.items() if ".h.2." in name}
    newborn = {name for name, origin in last.items() if isinstance(origin, Newborn)}
    assert newborn == {"attn.c_proj.weight", "attn.c_proj.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"}
    rest: Any = [origin for name, origin in last.items() if name not in newborn]
    assert all(origin.silent and origin.moments == "newborn" for origin in rest)
    others: Any = [origin for name, origin in lineage.origins.items() if ".h.2." not in name]
    assert not any(origin.silent or origin.maps or origin.moments == "newborn" for origin in others)


ADAPTED = ModelSpec(tiny_config()).readapted(
    {
        "transformer.h.0.mlp.c_fc": Site(2, 8),
        "transformer.h.1.mlp.c_proj": Site(3, 4),
        "transformer.h.1.attn.c_attn": Site(4, 2),
        "transformer.wte": Site(5, 1),
    }
)


def test_adapters_are_gathered_with_their_layers() -> None:
    new = ADAPTED.restacked([1, 0, 1])
    assert new.sites == {
        "transformer.h.0.attn.c_attn": (4, 2),
        "transformer.h.0.mlp.c_proj": (3, 4),
        "transformer.h.1.mlp.c_fc": (2, 8),
        "transformer.h.2.attn.c_attn": (4, 2),
        "transformer.h.2.mlp.c_proj": (3, 4),
        "transformer.wte": (5, 1),
    }
    lineage = regather(ADAPTED, new, [1, 0, 1], identity={2})
    assert list(lineage.origins) == list(new.shapes)
    a, b, base = (
        f"transformer.h.{{}}.mlp.c_proj.{part}"
        for part in ("lora_A.default.weight", "lora_B.default.weight", "base_layer.weight")
    )
    for name in (a, b, base):
        assert lineage.ancestor(name.format(0)) == name.format(1)
    assert isinstance(lineage.origins[b.format(2)], Newborn), "what adds to the residual stream starts at zero"
    assert isinstance(lineage.origins[base.format(2)], Newborn)
    drawn, beside = (
        lineage.origins[name] for name in (a.format(2), "transformer.h.2.attn.c_attn.lora_B.default.weight")
    )
    for origin in (drawn, beside):
        assert isinstance(origin, Descent), "and what does not is copied"
        assert origin.silent
    assert lineage.ancestor("transformer.wte.lora_embedding_A.default") == "transformer.wte.lora_embedding_A.default"
    assert ADAPTED.restacked([0, 0, 0]).sites.keys() == {f"transformer.h.{i}.mlp.c_fc" for i in range(3)} | {
        "transformer.wte"
    }


def test_adapters_grow_with_their_weight() -> None:
    share = torch.cat([torch.full((8,), 0.25), torch.ones(56), torch.full((8,), 0.75)]).double()
    units = Units(torch.cat([torch.arange(64), torch.arange(8)]), share, noise=Fill(0.1, 2))
    new = ADAPTED.evolve(mlp=72)
    origins: Any = resize(ADAPTED, new, "mlp", [units, units], Fill(0.02, 1)).origins
    written, read = (f"transformer.h.{layer}.mlp.{name}." for layer, name in ((0, "c_fc"), (1, "c_proj")))
    for name, dim in ((f"{written}lora_B.default.weight", 0), (f"{written}base_layer.weight", 1)):
        (entry,) = origins[name].maps
        assert (entry.dim, entry.weight, entry.grad.tolist()) == (dim, None, share.tolist())
    for name, dim in ((f"{read}lora_A.default.weight", 1), (f"{read}base_layer.weight", 0)):
        (entry,) = origins[name].maps
        assert (entry.dim, entry.weight.tolist(), entry.grad) == (dim, share.tolist(), None)
    for name in (
        f"{written}lora_A.default.weight",
        f"{read}lora_B.default.weight",
        "transformer.wte.base_layer.weight",
    ):
        assert origins[name].maps == ()
    disturbed = {name for name, origin in origins.items() if origin.noise is not None}
    assert disturbed == {f"{written}base_layer.weight", "transformer.h.1.mlp.c_fc.weight"}, "a weight once, in itself"
    assert {name for name, origin in origins.items() if origin.fill.std} == disturbed


def test_flags_are_inherited_from_ancestors() -> None:
    lineage = Lineage(
        {
            "a": Descent("old"),
            "b": Descent("old", silent=True),
            "c": Newborn("old"),
            "d": Descent("other"),
            "e": Descent("old", moments="newborn"),
        }
    )
    assert lineage.inherit(frozenset({"old"})) == {"a", "e"}
    assert lineage.inherit(frozenset({"old", "other", "stranger"})) == {"a", "d", "e"}
    assert lineage.inherit(frozenset()) == frozenset()
    assert lineage.ancestor("c") is None
    assert Lineage.unchanged(["x", "y"]).inherit(frozenset({"y"})) == {"y"}


def test_the_table_of_gpt2_names_every_parameter_and_axis() -> None:
    for tied in (True, False):
        spec = ModelSpec.of(tiny_model(tie_word_embeddings=tied))
        located = {GPT2.locate(name)[0] for name in spec.shapes}
        assert located == set(GPT2.parameters) - ({"lm_head.weight"} if tied else set())
        sizes = {"vocab": 32, "position": 16, "hidden": 16, "head": 16, "mlp": 64}
        for name, shape in spec.shapes.items():
            axes = GPT2.parameters[GPT2.locate(name)[0]]
            assert [sizes[axis.name] * axis.parts for axis in axes] == list(shape), name
