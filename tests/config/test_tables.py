"""The tables of names agree with the rooms that own the things behind the names."""

from __future__ import annotations

import dataclasses

import pytest

from bigopt.config import load_text, names, values
from bigopt.config.layers import as_node
from bigopt.core.errors import ConfError
from bigopt.models.activations import ACTIVATIONS
from bigopt.models.build import MODELS
from bigopt.models.init import INITS
from bigopt.models.losses import LOSSES
from bigopt.optim.schedules import SCHEDULES, Warmup
from bigopt.optim.search import SEARCHERS, SEARCHES
from bigopt.optim.table import MINI_BATCH, OPTIMIZERS, SECOND_ORDER, keys_of


def _available(table: object) -> set[str]:
    assert isinstance(table, dict)
    return {n for n, e in table.items() if (e if isinstance(e, bool) else e.available)}


def _defaults(make: object) -> dict[str, object]:
    return {f.name: f.default for f in dataclasses.fields(make) if f.name in keys_of(make)}  # type: ignore[arg-type]


def test_optimizers() -> None:
    assert _available(names.OPTIMIZERS) == set(OPTIMIZERS) | set(SECOND_ORDER)
    for name, entry in {**OPTIMIZERS, **SECOND_ORDER}.items():
        known = names.OPTIMIZERS[name]
        assert dict(known.uses) == _defaults(entry.make), name
        assert (known.learning_rate, known.full_batch) == (entry.learning_rate, entry.full_batch), name
        assert known.l1 == (entry.l1 is not None), name
        assert known.searches == (name in SECOND_ORDER), name
        assert load_text(f"model: {{name: ridge}}\noptimizer: {{name: {name}}}", "x").batch.size == entry.batch
    assert MINI_BATCH == 128


def test_schedules() -> None:
    assert _available(names.SCHEDULES) == set(SCHEDULES) | set(SEARCHES)
    for name, search in SEARCHES.items():
        known = names.SCHEDULES[name]
        assert dict(known.uses) == _defaults(search)
        assert known.full_batch
        assert known.searches
    assert names.SEARCHERS == SEARCHERS
    common = {"learning_rate", "unit", "scaling", "base_batch", "M", "warmup", "start_factor"}
    for name, kind in SCHEDULES.items():
        assert set(names.SCHEDULES[name].uses) == {*keys_of(kind), *common}, name
        for key, value in _defaults(kind).items():
            if value is not dataclasses.MISSING:
                assert names.SCHEDULES[name].uses[key] == value
    assert dataclasses.fields(Warmup)[-1].default == names.START_FACTOR


def test_models_losses_activations_and_rules() -> None:
    assert _available(names.MODELS) == set(MODELS)
    assert _available(names.VALUES["model.loss"]) == set(LOSSES)
    assert _available(names.VALUES["model.activation"]) == set(ACTIVATIONS)
    assert set(names.INIT_RULES) == set(INITS)
    for name, losses in names.LOSSES_OF.items():
        assert losses == MODELS[name].losses


@pytest.mark.parametrize("group", sorted(names.GROUPS))
def test_every_key_that_a_name_uses_is_a_key_of_its_group(group: str) -> None:
    for name, entry in names.GROUPS[group].items():
        assert set(entry.uses) <= set(values.groups()[group]), name
        for key, value in entry.uses.items():
            if value is not None:
                values.convert(f"{group}.{key}", as_node(value, "here"))


@pytest.mark.parametrize("group", ["model", "optimizer", "schedule", "strategy"])
def test_comments_list_the_names_that_are_there(group: str) -> None:
    listed = values.comment(f"{group}.name").split(" | ")
    assert listed == [n for n, entry in names.GROUPS[group].items() if entry.available]


def test_every_key_of_optimizer_schedule_strategy_is_used_by_some_name() -> None:
    for group in ("optimizer", "schedule", "strategy"):
        used = {key for entry in names.GROUPS[group].values() for key in entry.uses}
        extra = {"name", "clip_norm", "clip_value", "average", "M"}
        assert set(values.groups()[group]) <= used | extra


@pytest.mark.parametrize("name", sorted(n for n, e in names.OPTIMIZERS.items() if e.available))
def test_a_foreign_key_is_refused_for_every_optimizer(name: str) -> None:
    own = {"name", *names.OPTIMIZERS[name].uses, "clip_norm", "clip_value", "average", "history"}
    for key in set(values.groups()["optimizer"]) - own:
        with pytest.raises(ConfError, match=f"optimizer.{key} is not used by optimizer '{name}'"):
            load_text(f"model: {{name: ridge}}\noptimizer: {{name: {name}, {key}: 0.5}}", "x")
    for key in names.OPTIMIZERS[name].uses:
        load_text(f"model: {{name: ridge}}\noptimizer: {{name: {name}, {key}: {5 if key == 'history' else 0.5}}}", "x")
