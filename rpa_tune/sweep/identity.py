"""Whether a run may go on with a search that another one began: not under another sampler.

What a search asks is a function of the plan and of the answers, but only under one version of the
sampler. Optuna's asks other questions from one version to the next, so that a resumed or shared
search would silently be neither the one nor the other.
"""

from collections.abc import Iterable, Mapping, Sequence

from rpa_tune.errors import StoreError
from rpa_tune.store.notes import StudyPlan
from rpa_tune.sweep.study import Study


def require_same_samplers(studies: Sequence[Study], plans: Iterable[StudyPlan], where: str) -> None:
    """Refuses to resume studies that were begun under another version of their sampler.

    A plan that names another kind of sampler is a search of its own, and so is one after the
    kernel, the simulator or the compiler changed.

    Args:
      studies: About to be run.
      plans: What the store knows of earlier runs.
      where: The store, for the error.

    Raises:
      StoreError: A study was begun under another version.
    """
    today = {study.digest: study.note() for study in studies}
    for plan in plans:
        now = today.get(plan.study)
        if now is None or now.stamp != plan.stamp:
            continue
        if now.sampler.get("kind") == plan.sampler.get("kind") and now.sampler != plan.sampler:
            raise StoreError(
                f"the search of {now.name} began with {versions_text(plan.sampler)}; "
                f"{versions_text(now.sampler)} would choose other candidates",
                where=where,
                hint=f"install {versions_text(plan.sampler)}, give this run another --store, "
                "or start over with --fresh",
            )


def versions_text(sampler: Mapping[str, str]) -> str:
    """`optuna 5.0.0`: the versions of a sampler's identity."""
    versions = [f"{package} {version}" for package, version in sampler.items() if package != "kind"]
    return ", ".join(versions) or "no such package"
