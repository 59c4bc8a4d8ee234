"""What the default config of every family promises, for the tests of each space."""

import dataclasses
import itertools

from rpa_kernels import kv_blocks
from rpa_kernels.infeasible import Infeasible


def configs(space, config_type, problem, target):
    """All points of a space's axes."""
    axes = space.search_axes(problem, target)
    points = itertools.product(*axes.values())
    return [config_type(**dict(zip(axes, point, strict=True))) for point in points]


def check_that_it_gives_up_last(space, config_type, problem, chip, least_bits):
    """The default fits each share of VMEM in which anything fits, 128 MiB to `1 << least_bits`."""
    share, gave_up = kv_blocks.DEFAULT_VMEM_SHARE, []
    for shift in range(27, least_bits - 1, -1):
        target = dataclasses.replace(chip, vmem_bytes=1 << shift)
        config = space.default_config(problem, target)
        gave_up.append(isinstance(config, Infeasible))
        if not gave_up[-1]:
            assert space.check(problem, config, target, vmem_share=share) is None
        elif not gave_up[-2]:  # what does not fit here does not fit in less
            assert config.limit == "vmem_bytes"
            for other in configs(space, config_type, problem, target):
                assert space.check(problem, other, target, vmem_share=share), str(other)
    assert gave_up == sorted(gave_up)
    assert (gave_up[0], gave_up[-1]) == (False, True)
