"""Reading launch times from profiles, with profiles made by hand."""

from types import SimpleNamespace as Made

import pytest

from rpa_tune.errors import DeviceError
from rpa_tune.evaluate.device_times import Span, covered_ns, launch_times_ns, read_profile
from rpa_tune.evaluate.measurement import BatchSamples, is_steady, spread


def event(name, start_ns, duration_ns):
    return Made(name=name, start_ns=start_ns, duration_ns=duration_ns)


def plane(name, **lines):
    return Made(name=name, lines=[Made(name=n, events=events) for n, events in lines.items()])


def tpu_profile(*ops):
    return Made(
        planes=[
            plane("/host:CPU", python=[event("rpa launch 0", 0, 99)]),
            plane("/device:TPU:0", **{"XLA Modules": [event("jit_f(1)", 0, 90)], "XLA Ops": ops}),
        ]
    )


def test_on_a_tpu_it_is_the_kernels_own_events_in_launch_order():
    profile = tpu_profile(
        event("%decode_512.1 = (bf16[8]{0}) custom-call(%a, %b)", 50, 7.5),
        event("decode_512.1", 10, 5.0),
        event("decode_5120.1", 30, 1.0),
        event("%copy.1 = bf16[8] copy(%decode_512.1)", 20, 2.0),
    )
    assert launch_times_ns(profile, "rpa launch 0", "decode_512") == [5.0, 7.5]


def test_a_profile_without_the_kernel_is_an_error():
    with pytest.raises(DeviceError, match="no launch of 'decode'"):
        launch_times_ns(tpu_profile(event("copy.1", 0, 1)), "rpa launch 0", "decode")


def test_elsewhere_it_is_what_xla_threads_did_inside_each_annotation():
    profile = Made(
        planes=[
            plane(
                "/host:CPU",
                python=[event("rpa launch 0", 100, 100), event("rpa launch 1", 300, 100)],
                **{
                    "tf_XLAEigen/1": [event("dot", 110, 20), event("dot", 310, 5)],
                    "tf_XLAPjRtCpuClient/2": [
                        event("fusion", 120, 30),
                        event("end: fusion", 150, 40),
                        event("ThreadpoolListener::Record", 100, 100),
                    ],
                },
            )
        ]
    )
    assert launch_times_ns(profile, "rpa launch 0", "k") == [40]
    assert launch_times_ns(profile, "rpa launch 1", "k") == [5]


@pytest.mark.parametrize(
    ("spans", "total"),
    [
        ([], 0),
        ([Span(0, 10)], 10),
        ([Span(0, 10), Span(5, 15)], 15),
        ([Span(20, 30), Span(0, 10)], 20),
        ([Span(0, 100), Span(10, 20), Span(90, 110)], 110),
    ],
)
def test_overlapping_work_counts_once(spans, total):
    assert covered_ns(spans) == total


def test_a_folder_without_a_profile_is_an_error(tmp_path):
    with pytest.raises(DeviceError, match="found 0"):
        read_profile(tmp_path)


def test_steady_noisy_and_throttled_samples():
    steady = [100.0, 101.0, 99.0, 100.0] * 5
    assert is_steady(steady)
    assert not is_steady([100.0, 120.0, 90.0, 110.0] * 5)  # scatters
    assert not is_steady([100.0] * 7 + [102.0] * 6 + [104.5] * 7)  # slows down
    assert is_steady([104.5] * 7 + [102.0] * 6 + [100.0] * 7)  # warming up is over
    assert is_steady([1.0, 9.0])  # too few to say


def test_the_time_is_the_median_of_the_last_round_and_all_samples_are_kept():
    samples = BatchSamples(rounds_ns=((9e3, 9e3), (1e3, 5e3, 2e3)), is_steady=True)
    assert samples.time_us == 2.0
    assert samples.rounds_ns[0] == (9e3, 9e3)


def test_spread_is_relative():
    assert spread([10.0]) == 0.0
    assert spread([9.0, 10.0, 10.0, 11.0]) == pytest.approx(spread([90.0, 100.0, 100.0, 110.0]))
