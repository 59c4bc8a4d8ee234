"""Several runs that share one sweep, candidate by candidate, through an Optuna storage.

Every run climbs every study, asks the same questions and keeps its own store; a question goes to
whichever run is first to have a worker free, and the others read its answer. So all of them end
with the same table, and nothing is evaluated twice. The storage is a journal file on a shared
folder or a PostgreSQL database; each question is a trial in it, so Optuna's own tools show the
sweep: `exchange_text.py` says how. What runs tell each other is in the system attributes, which
those tools leave out.

A run says that it lives by counting up a number. Another run gives it up when the number
has stood still for `grace_s` on its own clock; clocks of different hosts are never compared.
"""

import contextlib
import os
import random
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy.exc
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from rpa_tune.candidate import Candidate, Evaluation, Method
from rpa_tune.errors import StoreError, UsageError, install_command
from rpa_tune.store import codec
from rpa_tune.store.doubt import TRANSIENT, fail_alike, is_settled
from rpa_tune.sweep import exchange_text as text
from rpa_tune.sweep.study import Study

Evaluate = Callable[[Iterable[Candidate]], Iterator[Evaluation]]

_POSTGRES = r"^postgres(ql)?(\+psycopg)?://"
_STORAGE_HINT = "--storage takes a file, or postgresql://USER@HOST/DATABASE"
_RUNS = "rpa-tune runs"  # the study whose attributes are the counters of the runs
_ENDED = -1  # the counter of a run that has ended
_POLL_S = 0.2
_SCHEMA_ATTEMPTS = 10
# System attributes of a trial.
_CANDIDATE, _RUN, _ANSWER = "rpa-tune:candidate", "rpa-tune:run", "rpa-tune:answer"


class Exchange(contextlib.AbstractContextManager["Exchange"]):
    """What one run takes from the others and gives to them. Any number of threads may ask."""

    def __init__(self, storage: str, *, beat_s: float = 5.0, grace_s: float = 60.0) -> None:
        """Connects, and says from now on that this run lives.

        Args:
          storage: A file, or the URL of a database.
          beat_s: Seconds between two signs of life.
          grace_s: Without a sign of life for this long, a run is given up.

        Raises:
          StoreError: The storage cannot be used.
          UsageError: What it needs is not installed.
        """
        self._name = storage
        self._storage, self._disconnect = _open(storage)
        self._beat_s = beat_s
        self._grace_s = grace_s
        self._run = f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex[:8]}"
        self._seen: dict[str, tuple[Any, float]] = {}  # run -> its counter, and since when
        self._shown: dict[tuple[int, str], text.Shown] = {}  # (Optuna study, name in the plan)
        self._mine: dict[tuple[int, str], int] = {}  # (Optuna study, candidate) -> trial
        self._lock = threading.Lock()
        self._is_closing = threading.Event()
        self._runs_id = self._study_id(_RUNS)
        self._began = time.monotonic()
        self._found = self._storage.get_study_user_attrs(self._runs_id)  # counters, when it began
        self._storage.set_study_user_attr(self._runs_id, self._run, 0)
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    def shuffle(self, items: list[Any]) -> None:
        """Puts things into an order of this run's own, so that runs start in different places."""
        random.Random(self._run).shuffle(items)

    def share(
        self,
        candidates: Sequence[Candidate],
        evaluate: Evaluate,
        *,
        study: Study,
        fidelity: Method,
        stamp: Sequence[str],
        check: Callable[[], None],
    ) -> Iterator[tuple[Evaluation, bool]]:
        """An answer to each candidate, and whether this run found it.

        Args:
          candidates: Of one study.
          evaluate: Answers what falls to this run; takes candidates as workers become free.
          study: Which; its name, axes and search are shown, and the search is compared.
          fidelity: How answers are got.
          stamp: The versions that answers depend on; others are not taken.
          check: Called while waiting; what it raises ends the call.

        Raises:
          StoreError: The storage failed, or the other runs search in another way.
        """
        if not candidates:
            return
        study_id = self._study_id(text.study_name(candidates[0], fidelity, stamp))
        shown = self._show(study_id, study, fidelity)
        self._require_same_search(study_id, shown)
        waiting = list(candidates)
        while waiting:
            found: list[Evaluation] = []
            busy: list[Candidate] = []
            for answer in evaluate(self._take_all(study_id, shown, waiting, found, busy)):
                self._publish(study_id, answer)
                yield answer, True
            for answer in found:
                yield answer, False
            if len(busy) == len(waiting):
                check()
                time.sleep(_POLL_S)
            waiting = busy

    def __exit__(self, *error: object) -> None:
        """Closes, whatever happened."""
        self.close()

    def close(self) -> None:
        """Gives back what this run was asked and did not answer."""
        self._is_closing.set()
        self._heart.join()
        with self._lock, contextlib.suppress(StoreError), self._usable():
            for trial_id in self._mine.values():
                self._give_up(trial_id)
            self._storage.set_study_user_attr(self._runs_id, self._run, _ENDED)
        self._storage.remove_session()
        self._disconnect()

    def _take_all(
        self,
        study_id: int,
        shown: text.Shown,
        candidates: Sequence[Candidate],
        found: list[Evaluation],
        busy: list[Candidate],
    ) -> Iterator[Candidate]:
        """Those that are this run's to answer; the others go into `found` and `busy`."""
        for candidate in candidates:
            taken = self._take(study_id, shown, candidate)
            if taken is None:
                yield candidate
            elif isinstance(taken, Evaluation):
                found.append(taken)
            else:
                busy.append(candidate)

    def _take(
        self, study_id: int, shown: text.Shown, candidate: Candidate
    ) -> Evaluation | FrozenTrial | None:
        """The answer of a run, or the trial of a run that is at it, or None when it is ours."""
        with self._lock, self._usable():
            taken = self._look(study_id, candidate)
            if taken is not None:
                return taken
            params, distributions = shown.params(candidate.config)
            trial_id = self._storage.create_new_trial(
                study_id,
                create_trial(
                    state=TrialState.RUNNING,
                    params=params,
                    distributions=distributions,
                    user_attrs={"run": self._run},
                    system_attrs={_CANDIDATE: candidate.digest, _RUN: self._run},
                ),
            )
            # Two may have found nothing and begun: trials are numbered, the first one counts.
            taken = self._look(study_id, candidate)
            number = self._storage.get_trial_number_from_id(trial_id)
            if isinstance(taken, FrozenTrial) and taken.number == number:
                self._mine[study_id, candidate.digest] = trial_id
                return None
            self._give_up(trial_id)
            return taken

    def _look(self, study_id: int, candidate: Candidate) -> Evaluation | FrozenTrial | None:
        """The answer that counts, else the first live trial, else None.

        Of answers that blame the machine or the moment those of runs that had ended before this one
        began are asked for again, as by `Journal.find`. A run that may have ended is waited for.
        """
        all_trials = self._storage.get_all_trials(study_id, deepcopy=False)
        trials = [t for t in all_trials if t.system_attrs.get(_CANDIDATE) == candidate.digest]
        answered = [t for t in trials if t.state.is_finished() and _ANSWER in t.system_attrs]
        if answered:
            answer = codec.from_dict(answered[-1].system_attrs[_ANSWER])
            in_doubt = answer.status in TRANSIENT or self._is_doubtful(answer, all_trials)
            if not in_doubt:
                return answer
            was_before = [self._was_before(trial.system_attrs[_RUN]) for trial in answered]
            if None in was_before:
                return answered[was_before.index(None)]
            num_here = was_before.count(False)
            was_asked = any(was_before)
            if num_here and is_settled(answer.status, num_here=num_here, was_before=was_asked):
                return answer
        for trial in trials:
            if trial.state.is_finished():
                continue
            if self._is_alive(trial.system_attrs[_RUN]):
                return trial
            number = trial.number
            self._give_up(self._storage.get_trial_id_from_study_id_trial_number(study_id, number))
        return None

    def _publish(self, study_id: int, answer: Evaluation) -> None:
        """Tells the others. An answer that comes after this run was given up is not told."""
        late = contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError)
        with self._lock, self._usable(), late:
            trial_id = self._mine.pop((study_id, answer.candidate.digest))
            for name, value in text.answer_attributes(answer).items():
                self._storage.set_trial_user_attr(trial_id, name, value)
            self._storage.set_trial_system_attr(trial_id, _ANSWER, codec.to_dict(answer))
            self._storage.set_trial_state_values(trial_id, *text.state_and_values(answer))

    def _give_up(self, trial_id: int) -> None:
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            self._storage.set_trial_state_values(trial_id, TrialState.PRUNED)

    def _show(self, study_id: int, study: Study, fidelity: Method) -> text.Shown:
        """Says for people what a study is; the first run does, and all would say the same."""
        with self._lock, self._usable():
            key = (study_id, study.name)
            if key in self._shown:
                return self._shown[key]
            shown = self._shown[key] = text.Shown(study, fidelity)
            known = self._storage.get_study_user_attrs(study_id)
            for name, value in shown.attributes.items():
                if name not in known:
                    self._storage.set_study_user_attr(study_id, name, value)
            attributes = self._storage.get_study_system_attrs(study_id)
            for name, value in shown.system_attributes.items():
                if name not in attributes:
                    self._storage.set_study_system_attr(study_id, name, value)
        return shown

    def _require_same_search(self, study_id: int, shown: text.Shown) -> None:
        """Refuses to mix two searches: each run would wait for what the others never ask.

        Two that begin at once may both write. One of the two stays, and who finds the other's is
        refused, now or when it next asks.
        """
        with self._usable():
            theirs = self._storage.get_study_user_attrs(study_id)[text.SEARCH]
        if differences := text.differences(shown.attributes[text.SEARCH], theirs):
            raise StoreError(
                f"the runs that share this storage search {shown.name} differently: {differences}",
                where=hide_password(self._name),
                hint="give all of them one plan and the same versions, or this one a --storage of "
                "its own",
            )

    def _is_doubtful(self, answer: Evaluation, trials: Sequence[FrozenTrial]) -> bool:
        """Whether all that is known of an answer's study are failures for one reason."""
        found = (t.system_attrs.get(_ANSWER) for t in trials if t.state.is_finished())
        return not answer.ok and fail_alike(codec.from_dict(other) for other in found if other)

    def _was_before(self, run: str) -> bool | None:
        """Whether a run had ended when this one began; None while that is not known.

        A killed run says nothing: its counter stands still.
        """
        if run not in self._found:
            return False
        counter = self._storage.get_study_user_attrs(self._runs_id).get(run)
        if self._found[run] == _ENDED:
            return True
        if counter != self._found[run]:
            return False
        return True if time.monotonic() - self._began >= self._grace_s else None

    def _is_alive(self, run: str) -> bool:
        if run == self._run:
            return True
        counter = self._storage.get_study_user_attrs(self._runs_id).get(run)
        if counter == _ENDED:
            return False
        known, since = self._seen.get(run, (None, 0.0))
        if counter != known:
            self._seen[run] = (counter, time.monotonic())
            return True
        return time.monotonic() - since < self._grace_s

    def _beat(self) -> None:
        count = 0
        while not self._is_closing.wait(self._beat_s):
            count += 1
            with contextlib.suppress(StoreError), self._usable():  # the next may work
                self._storage.set_study_user_attr(self._runs_id, self._run, count)
        self._storage.remove_session()

    def _study_id(self, name: str) -> int:
        with self._usable():
            return self._make_study(name)

    def _make_study(self, name: str) -> int:
        try:
            directions = [optuna.study.StudyDirection.MINIMIZE]
            return self._storage.create_new_study(directions, name)
        except optuna.exceptions.DuplicatedStudyError:
            return self._storage.get_study_id_from_name(name)

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        """Says what it means when the storage fails under way."""
        try:
            yield
        except (optuna.exceptions.StorageInternalError, OSError) as error:
            cause = error.__cause__ or error
            raise StoreError(
                f"the connection to the storage was lost: {_first_line(cause)}",
                where=hide_password(self._name),
                hint="earlier results are in the store; run the same command to resume",
            ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _open(storage: str) -> tuple[BaseStorage, Callable[[], None]]:
    """The storage behind a file name or a URL, and what ends the connection to it."""
    if "://" in storage and not re.match(_POSTGRES, storage):
        raise UsageError(
            "not a storage that runs can share", where=hide_password(storage), hint=_STORAGE_HINT
        )
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        if "://" not in storage:
            Path(storage).parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(JournalFileBackend(storage)), lambda: None
        return _open_database(re.sub(_POSTGRES, "postgresql+psycopg://", storage))
    except ImportError as error:
        raise UsageError(
            f"--storage needs a driver that is not installed: {error.name or error}",
            hint=install_command("postgres"),
        ) from error
    except Exception as error:  # of the operating system, SQLAlchemy or the driver
        raise StoreError(
            f"cannot use the storage: {_first_line(error)}",
            where=hide_password(storage),
            hint=_STORAGE_HINT,
        ) from error


def _open_database(url: str) -> tuple[BaseStorage, Callable[[], None]]:
    """Optuna's tables in a database. Of several that make them at once, all but one fail once."""
    for attempt in range(_SCHEMA_ATTEMPTS):
        try:
            database = RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
            return get_storage(database), database.engine.dispose
        except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError):
            if attempt == _SCHEMA_ATTEMPTS - 1:
                raise
            time.sleep(random.uniform(0.2, 1.0))
    raise AssertionError("unreachable")


def hide_password(storage: str) -> str:
    """A URL as it may be printed."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", storage)
