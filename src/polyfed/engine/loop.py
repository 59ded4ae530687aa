"""The training loop: rounds, evaluation, best round and early stop, records and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from polyfed.engine.answers import keep_answers
from polyfed.engine.background import Background
from polyfed.engine.batching import Rule
from polyfed.engine.checkpoint import Checkpoints, Saved, digest_of
from polyfed.engine.crew import crew_of, workers_of
from polyfed.engine.drive import drive
from polyfed.engine.evaluate import Evaluation, score
from polyfed.engine.judging import Judging
from polyfed.engine.notes import note_record
from polyfed.engine.pictures import keep_pictures
from polyfed.engine.records import Observer, Recorder
from polyfed.engine.saving import Save
from polyfed.engine.simulator import Deliver, PersonalStates, Screening, Simulator, untouched
from polyfed.engine.steps import Alone, Crew, jobs_of
from polyfed.engine.trainer import Precision, Trainer
from polyfed.engine.tree import check_round_trip, pack
from polyfed.engine.workers import Event
from polyfed.errors import UserError
from polyfed.method.protocol import Clock, Method, Note
from polyfed.model.architecture import Architecture, Tensors
from polyfed.scenario.federation import Federation
from polyfed.scenario.skew import label_distances


@dataclass(frozen=True)
class Plan:
    """How long to train, how often to evaluate and save, and when to stop early.

    ``target``: stop when the score (see ``score``) reaches it; ``patience``: stop after so many evaluations without a
    better score. Both judge validation samples, or test samples where there are no others. ``rule`` tells which clients
    are trained stacked, ``workers`` how many processes train (None: one per core where that pays). ``server_test``: the
    global model is evaluated, too; ``unimodal``: by each modality alone. ``diagnostics``: clients' distances, the
    agreement of their updates and their use of experts are recorded.
    """

    rounds: int
    seed: int
    evaluate_every: int = 1
    checkpoint_every: int = 1
    target: float | None = None
    patience: int | None = None
    screening: Screening = field(default_factory=Screening)
    rule: Rule = field(default_factory=Rule)
    precision: Precision = "float32"
    workers: int | None = 1
    server_test: bool = False
    unimodal: bool = False
    diagnostics: bool = False


@dataclass
class Progress:
    """What the loop remembers between rounds, besides the method's state. Saved in every checkpoint."""

    round: int = 0
    seconds: float = 0.0
    best_round: int = 0
    best_score: float | None = None
    since_best: int = 0
    best: list[dict[str, Any]] = field(default_factory=list)
    latest: list[dict[str, Any]] = field(default_factory=list)
    stopped: str | None = None
    refused: list[dict[str, Any]] = field(default_factory=list)
    bytes: dict[str, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    models: list[dict[str, Any]] = field(default_factory=list)
    records_length: int = 0

    def snapshot(self) -> dict[str, Any]:
        """Return what is to be saved of this moment; ``best`` and ``latest`` are replaced as a whole, never changed."""
        return {**vars(self), "refused": list(self.refused), "bytes": dict(self.bytes), "models": list(self.models)}

    @classmethod
    def of(cls, saved: Saved[Any]) -> Progress:
        """Read what a checkpoint holds; raises UserError where another version of polyfed wrote it."""
        try:
            return cls(**saved.progress)
        except TypeError as error:
            raise UserError(
                f"the checkpoint of round {saved.round} holds another progress than this version of polyfed writes "
                f"({error}); start anew with --overwrite"
            ) from error


@dataclass(frozen=True)
class Outcome:
    """The end of a run: the method's state, personal parameters by client, and the loop's progress."""

    state: Any
    personal: dict[int, Mapping[str, Tensors]]
    progress: Progress

    @property
    def digest(self) -> str:
        """SHA-256 over the server's tensors by sorted name."""
        return digest_of(pack(self.state)[1])

    @property
    def personal_digest(self) -> str:
        """SHA-256 over the clients' personal tensors by sorted name."""
        return digest_of(pack(self.personal)[1])


class Loop:
    """One run of a method on a federation. ``folder`` None keeps everything in memory."""

    def __init__(
        self,
        method: Method[Any],
        federation: Federation,
        architecture: Architecture,
        plan: Plan,
        *,
        folder: Path | None = None,
        identity: Mapping[str, str] | None = None,
        observers: Sequence[Observer] = (),
        device: torch.device | None = None,
        deliver: Deliver = untouched,
    ) -> None:
        self.method = method
        self.plan = plan
        self.architecture = architecture
        self.federation = with_components(federation, architecture)
        self.judged = with_components(federation.members or federation, architecture)
        self.device = device or torch.device("cpu")
        rule = replace(plan.rule, accelerated=self.device.type != "cpu")
        # Models to plan with stay on the CPU: once this process has used a GPU, processes forked from it cannot.
        planner = Trainer(architecture, rule=rule, precision=plan.precision)
        self.workers = workers_of(plan.workers, self.device, planner, self.federation)
        self.trainer = planner if self.workers > 1 else Trainer(architecture, self.device, rule, plan.precision)
        self.observers = tuple(observers)
        self.deliver = deliver
        self.folder = folder
        self.records = None if folder is None else folder / "records.jsonl"
        self.checkpoints = None if folder is None else Checkpoints(folder / "checkpoints", identity or {})
        self.judging = Judging(
            method,
            self.federation,
            self.judged,
            self.trainer,
            server_test=plan.server_test,
            unimodal=plan.unimodal,
            uses=plan.diagnostics,
        )
        self._mark = 0.0
        self._background = Background(Save.write, Save.replaced_by)

    def run(self, *, resume: bool = False) -> Outcome:
        """Train to the end of the plan, from the last checkpoint if asked to."""
        initial = self.architecture.initial(self.plan.seed)
        first = self.method.begin(initial, self.federation.cards)
        if self.checkpoints is not None:
            check_round_trip(first)
        saved = self.checkpoints.latest(type(first)) if resume and self.checkpoints is not None else None
        state = first if saved is None else saved.state
        progress = Progress() if saved is None else Progress.of(saved)
        recorder = Recorder(self.records, self.observers, at=progress.records_length)
        self._mark = time.perf_counter()
        with recorder, self._background, closing(self._crew(initial, recorder, progress)) as crew:
            simulator = self._simulator(initial, crew, recorder, saved, progress)
            simulator.diagnose = self.plan.diagnostics
            if saved is None:
                if self.plan.diagnostics:
                    record_skew(self.judged, recorder)
                self._evaluate(state, simulator, progress, recorder)
                self._save(state, simulator, progress, recorder)
            while progress.round < self.plan.rounds and progress.stopped is None:
                state = self._round(state, simulator, progress, recorder)
            self._clock_in(progress)
            if self.folder is not None:
                parameters_of = self.judging.parameters_of(state, simulator)
                keep_pictures(self.folder, self.judged, self.trainer, parameters_of, progress.round)
                keep_answers(self.folder, self.judged, self.trainer, parameters_of, progress.round)
        return Outcome(state, dict(simulator.personal.held), progress)

    def _crew(self, initial: Tensors, recorder: Recorder, progress: Progress) -> Crew:
        """Return who does the work; workers that die are recorded."""

        def note(event: Event) -> None:
            recorder.write({"kind": "worker", "after_round": progress.round, **event})

        alone = Alone(self.method, self.federation, self.judged, self.trainer)
        return crew_of(self.workers, alone, self.device, sum(value.nbytes for value in initial.values()), note)

    def _simulator(
        self, initial: Tensors, crew: Crew, recorder: Recorder, saved: Saved[Any] | None, progress: Progress
    ) -> Simulator:
        personal = PersonalStates({} if saved is None else dict(saved.personal))
        simulator = Simulator(
            self.method,
            self.federation,
            crew,
            lambda clients: jobs_of(clients, self.federation.cards, self.trainer),
            recorder,
            self.plan.screening,
            initial,
            personal,
            self.deliver,
        )
        simulator.refused, simulator.bytes, simulator.models = progress.refused, progress.bytes, progress.models
        return simulator

    def _round(self, state: Any, simulator: Simulator, progress: Progress, recorder: Recorder) -> Any:
        number = progress.round + 1
        started, before = time.perf_counter(), dict(progress.bytes)
        clock = Clock(self.plan.seed, number, self.plan.rounds)
        asked: list[int] = []
        exchange = simulator.exchanger(clock)

        def noted(wanted: Any) -> Any:
            asked.extend(() if wanted.aside else wanted.orders)
            return exchange(wanted)

        def record(said: Note) -> None:
            recorder.write(note_record(number, said))

        state = drive(self.method.round(state, self.federation.cards, clock), noted, record)
        seconds = time.perf_counter() - started
        progress.round = number
        refused = {entry["client"] for entry in progress.refused if entry["round"] == number}
        cohort = sorted(set(asked))
        if number % self.plan.evaluate_every == 0 or number == self.plan.rounds:
            self._evaluate(state, simulator, progress, recorder)
        recorder.write(
            {
                "kind": "round",
                "round": number,
                "cohort": cohort,
                "replied": [client for client in cohort if client not in refused],
                "seconds": round(seconds, 6),
                "bytes": {way: progress.bytes[way] - before[way] for way in progress.bytes},
                "fits": simulator.take_paths(),
            }
        )
        if number % self.plan.checkpoint_every == 0 or number == self.plan.rounds or progress.stopped:
            self._save(state, simulator, progress, recorder)
        return state

    def _evaluate(self, state: Any, simulator: Simulator, progress: Progress, recorder: Recorder) -> None:
        found = self.judging.evaluate(state, simulator, progress.round, recorder)
        progress.latest = [evaluation.record(progress.round) for evaluation in found if evaluation.split == "test"]
        self._judge(found, progress)

    def _judge(self, found: Sequence[Evaluation], progress: Progress) -> None:
        """Keep the best round and decide on stopping early."""
        judged = [evaluation for evaluation in found if evaluation.split == "validation"] or list(found)
        reached = score(judged, self.judged.tasks)
        if reached is None:
            return
        if progress.best_score is None or reached > progress.best_score:
            progress.best_score, progress.best_round, progress.since_best = reached, progress.round, 0
            progress.best = progress.latest
        else:
            progress.since_best += 1
        if self.plan.target is not None and reached >= self.plan.target:
            progress.stopped = f"the score reached the target {self.plan.target:g} in round {progress.round}"
        elif self.plan.patience is not None and progress.since_best >= self.plan.patience:
            progress.stopped = f"no better score in {self.plan.patience} evaluations"

    def _clock_in(self, progress: Progress) -> None:
        """Add the time since the last call, so that a resumed run sums the seconds of all its parts."""
        now = time.perf_counter()
        progress.seconds, self._mark = progress.seconds + now - self._mark, now

    def _save(self, state: Any, simulator: Simulator, progress: Progress, recorder: Recorder) -> None:
        """Have the checkpoint of this moment written beside the training: states are never changed once handed over."""
        if self.checkpoints is None:
            return
        self._clock_in(progress)
        progress.records_length = recorder.flush()
        changed, snapshot = simulator.personal.take_changed(), progress.snapshot()
        self._background.give(Save(self.checkpoints, recorder, progress.round, state, changed, snapshot))


def record_skew(federation: Federation, recorder: Recorder) -> None:
    """Record how far each client's labels are from everybody's."""
    for client, distances in label_distances(federation).items():
        recorder.write({"kind": "skew", "client": client, "label_distance": distances})


def with_components(federation: Federation, architecture: Architecture) -> Federation:
    """Write the component names of each client's model on its card."""
    return federation.with_cards(federation.cards.with_components(architecture.components))
