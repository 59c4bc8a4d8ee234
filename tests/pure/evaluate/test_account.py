"""An account that is asked as seldom as possible says the same as one that is always asked."""

import copy
import dataclasses
import functools
import pickle
from types import SimpleNamespace

import pytest
from pure.evaluate.builders import PROBLEM, WORKLOAD, candidate
from table_rows import LATENT

from rpa_kernels.batch import Batch
from rpa_kernels.cores import cores_of
from rpa_tune.candidate import Candidate
from rpa_tune.evaluate.account import ByFieldsRead, account_of
from rpa_tune.families.registry import ALL_FAMILIES, load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.space.space import build_space
from rpa_tune.workload.workload import WeightedBatch, Workload

SHAPE = dataclasses.replace(PROBLEM, page_size=128, pages_per_seq=4)


def counted(function):
    """A memo of a function, and the list of its calls."""
    calls = []

    def call(config):
        calls.append(config)
        return function(config)

    return ByFieldsRead(call), calls


def test_what_is_not_read_is_not_asked_for_again():
    double, calls = counted(lambda config: 2 * config.a)
    assert double(SimpleNamespace(a=1, b=1)) == 2
    assert double(SimpleNamespace(a=1, b=2)) == 2
    assert double(SimpleNamespace(a=3, b=1)) == 6
    assert len(calls) == 2


def test_which_fields_are_read_may_depend_on_others():
    chosen, calls = counted(lambda config: config.b if config.a else -config.c)
    points = [(a, b, c) for a in (0, 1) for b in (1, 2) for c in (5, 6)] * 2
    for a, b, c in points:
        assert chosen(SimpleNamespace(a=a, b=b, c=c)) == (b if a else -c)
    assert len(calls) == 4  # c matters with a=0, b with a=1


@pytest.mark.parametrize("chip", ["v5p", "v6e"])
@pytest.mark.parametrize("family_name", ["decode", "mixed", "public-v3-decode"])
def test_equal_to_the_account_itself_all_over_the_space(family_name, chip):
    family, record = load_family(family_name), load_chip(chip)
    target, own = record.target, WORKLOAD.for_family(*family.slots)
    configs = build_space(family, SHAPE, target).configs
    cores = cores_of(record.num_cores_per_device if family.partition else 1)
    for config in configs[:: max(1, len(configs) // 60)]:
        asked = Candidate(
            family=family, problem=SHAPE, config=config, chip=record, workload=own.digest
        )
        account = account_of(asked, own)
        plain = [
            [
                (
                    family.traffic(SHAPE, config, wb.batch, core),
                    family.mxu_flops(SHAPE, config, wb.batch, target, core),
                    family.num_steps(SHAPE, config, wb.batch, core),
                )
                for core in cores
            ]
            for wb in own.batches
        ]
        found = zip(
            account.traffic(config), account.mxu_flops(config), account.num_steps(config),
            strict=True,
        )  # fmt: skip
        assert [list(zip(*of_batch, strict=True)) for of_batch in found] == plain


def test_candidates_of_a_study_share_an_account_and_others_do_not():
    own = WORKLOAD.for_family("decode")
    first = account_of(candidate(), own)
    assert account_of(candidate(num_buffers=3), own) is first
    assert account_of(candidate(chip="v5e"), own) is not first
    assert account_of(candidate(problem=SHAPE), own) is not first


@pytest.mark.parametrize("name", ALL_FAMILIES)
def test_accounts_read_nothing_of_a_config_but_its_fields(name):
    """Otherwise nobody would know what they depend on."""
    family, chip = load_family(name), load_chip("v5p")
    shape = dataclasses.replace(SHAPE, head_dim=64 if name == "public-hd64" else 128)
    if "mla-" in name:
        shape = dataclasses.replace(LATENT, num_q_heads=16)
    batch = Batch(q_lens=(1, 4, 9), kv_lens=(100, 90, 9), num_decode=1, num_prefill=1)
    every = Workload(name="", source="", batches=(WeightedBatch(batch=batch, weight=1.0),))
    config = build_space(family, shape, chip.target).configs[0]
    asked = Candidate(family=family, problem=shape, config=config, chip=chip, workload=every.digest)
    account = account_of(asked, every)
    fields = set(family.config_type.__dataclass_fields__)
    for memo in (account.traffic, account.mxu_flops, account.num_steps):
        memo(config)
        assert [names for names in memo._results if set(names) <= fields] == list(memo._results)


WRONG_USES = {
    "hash": hash,
    "equality": lambda config: config == 1,
    "cached function": functools.cache(lambda config: config.bkv_sz),
    "replace": lambda config: dataclasses.replace(config, bkv_sz=1),
    "asdict": dataclasses.asdict,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "set": lambda config: setattr(config, "bkv_sz", 1),
    "in a dict": lambda config: {config: 1},
}


@pytest.mark.parametrize("use", WRONG_USES.values(), ids=WRONG_USES)
def test_what_would_read_fields_unnoticed_is_refused(use):
    """The contract of `kernels/family.py`: an account reads attributes, and no more."""
    config = candidate().config
    with pytest.raises(TypeError):
        ByFieldsRead(use)(config)


def test_attributes_properties_and_what_they_are_passed_to_are_fine():
    config = candidate().config
    double = ByFieldsRead(lambda config: (lambda inner: inner.bkv_sz * 2)(config))
    assert double(config) == 2 * config.bkv_sz
