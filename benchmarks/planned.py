"""What a plan asks for, as one digest: whether a change left all studies as they were.

    python benchmarks/planned.py sweeps/fleet.yaml

Counted are the problem, the batches, the space and the search of every study, and the rows that it
fills: an answer in a store belongs to a study by these, so that another digest means that `make
tables` asks again. The seconds are of this process, reading and building; no compiler runs.
"""

import hashlib
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict

from rpa_tune.sweep.plan import load_plan
from rpa_tune.sweep.study import Study, build_studies


def line(study: Study) -> str:
    """All that a study asks for, in JSON."""
    said = [
        study.name, study.family.name, asdict(study.problem), study.chip.name, study.workload.name,
        study.workload.source, study.workload.digest, dict(study.overrides), asdict(study.search),
        [asdict(problem) for problem in study.fills], study.libtpu_args,
    ]  # fmt: skip
    return json.dumps(said, sort_keys=True)


def digest(studies: Iterable[Study]) -> str:
    """16 hex digits over all studies in their order."""
    text = "\n".join(map(line, studies))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def main() -> None:
    """Prints number and digest of each plan's studies."""
    for plan in sys.argv[1:]:
        begun_s = time.process_time()
        studies = build_studies(load_plan(plan))
        seconds = time.process_time() - begun_s
        print(f"{plan}: {len(studies):,} studies, {digest(studies)}, {seconds:.1f} s of CPU time")


if __name__ == "__main__":
    main()
