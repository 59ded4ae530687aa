"""BMSFed's selection: who takes part with all modalities, and who trains the weak one alone (Fan et al., ECCV 2024).

The method section of the paper could not be read: this follows the authors' slides and code. Where they differ, or
where the code has plain mistakes, ``docs/decisions/0015-bmsfed.md`` tells what is done here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from polyfed.data.schema import Task
from polyfed.errors import UserError
from polyfed.method.balance import (
    BALANCE,
    RATIOS,
    Reporting,
    behind,
    classified,
    expected_balance,
    largest_ratio,
)
from polyfed.method.companion import Asked
from polyfed.method.decoupled import ENHANCEMENT_GRADIENT, SUPERVISED_GRADIENT, Decoupled, expected_gradients
from polyfed.method.facility import ConflictRule, balanced_greedy, enough
from polyfed.method.protocol import Clock, Cohort, Conversation, Expects, Groups, Note, Reducer, Reply, note
from polyfed.method.select import Draft, Everyone, PerRound, Selector, check_size
from polyfed.method.select_diverse import Candidates, Renewal, StartEpochs, drawing
from polyfed.method.training import Local
from polyfed.method.updates import Track, blank, distances
from polyfed.model.architecture import Tensors
from polyfed.scenario.federation import Card, ClientId, Roster

MULTI, SINGLE = "multi", "single."
"""The track of updates of all encoders; what tracks of single encoders begin with, before the modality."""

BEHIND = "behind"
"""The group of memory that holds, (clients,) by modality, how far each client's modality is behind its best other."""

Compared = Literal["encoders", "everything"]
Gradients = Literal["update", "decoupled"]


@dataclass
class BalanceRenewal:
    """Renews updates and ratios from replies."""

    updates: Renewal
    places: Mapping[ClientId, int]
    ratios: dict[ClientId, dict[str, float]] = field(default_factory=dict)

    @property
    def counted(self) -> tuple[ClientId, ...]:
        """Clients whose replies were added."""
        return self.updates.counted

    def add(self, client: ClientId, reply: Reply) -> None:
        """Take one reply in."""
        if BALANCE in reply.tensors:
            card = self.updates.asked.roster[client]
            self.ratios[client] = behind(reply.tensors[BALANCE][RATIOS], card.modalities, largest_ratio(card))
        self.updates.add(client, reply)

    def scale(self, track: str, client: ClientId) -> float:
        """Return the weight of a client's gradient: of the enhancement loss, 1 if the modality is behind there, else 0.

        Behind it is by what was known before the round; in a start-up pass, by what the client reports in it.
        """
        if track == MULTI or len(self.updates.asked.roster[client].modalities) == 1:
            return 1.0
        modality = track.removeprefix(SINGLE)
        known = self.updates.memory[BEHIND][modality][self.places[client]].item()
        behind = self.ratios[client][modality] if self.updates.asked.starting else known
        return float(behind > 1)

    def finish(self) -> Groups:
        """Return the renewed memory."""
        memory = self.updates.finish()
        held = {modality: values.clone() for modality, values in memory[BEHIND].items()}
        for client, ratios in self.ratios.items():
            for modality, ratio in ratios.items():
                held[modality][self.places[client]] = ratio
        return {**memory, BEHIND: held}


@dataclass(frozen=True)
class Balanced(Everyone):
    """Chooses multi-modal participants, and participants that train the weak modality alone.

    The weak modality of a round is the one that is farthest behind in the mean over clients, weighted by samples. See
    ``balanced_greedy`` for the rules; ``compared`` tells which parameters' updates are compared.
    With ``refresh_single`` a multi-modal participation also renews the updates of its single encoders. ``gradients``
    update: clients are compared by their updates; decoupled: by gradients that they send besides, see ``Decoupled``.
    """

    clients: int
    threshold: float | None = 1.5
    candidates: int | None = None
    rule: ConflictRule = "hybrid"
    share_cover: bool = True
    compared: Compared = "encoders"
    refresh_single: bool = True
    start_epochs: int = 1
    gradients: Gradients = "update"

    @property
    def whole(self) -> bool:
        """Clients compare all their modalities, whatever they train."""
        return True

    def starts(self, clock: Clock) -> int | None:
        """Everybody trains once before there is anything to choose by."""
        if clock.round > 1:
            return None
        return self.start_epochs if self.gradients == "update" else 0

    def begin(self, initial: Tensors, roster: Roster) -> Groups:
        """Nothing is known yet; raises UserError if there is only one modality."""
        modalities = modalities_of(roster)
        if len(modalities) < 2:
            raise UserError(
                f"select.name: bms chooses between modalities, but clients have only {', '.join(modalities) or 'none'}"
            )
        unknown = {
            modality: torch.tensor(
                [1.0 if modality in roster[client].modalities else math.nan for client in sorted(roster)],
                dtype=torch.float64,
            )
            for modality in modalities
        }
        return {**blank(self._tracks(initial, modalities), len(roster)), BEHIND: unknown}

    def _tracks(self, parameters: Tensors, modalities: Sequence[str]) -> dict[str, Track]:
        encoders = {
            modality: [name for name in parameters if name.startswith(f"encoder.{modality}.")]
            for modality in modalities
        }
        compared = [name for held in encoders.values() for name in held]
        tracks = {MULTI: Track.of(parameters, compared if self.compared == "encoders" else tuple(parameters))}
        return tracks | {f"{SINGLE}{modality}": Track.of(parameters, held) for modality, held in encoders.items()}

    def check(self, roster: Roster, tasks: Mapping[str, Task]) -> None:
        """Raise UserError if a client with several modalities has no classification task to compare them by."""
        for card in roster.values():
            if len(card.modalities) > 1:
                classified(card, tasks, "select.name: bms")

    def around(self, local: Local, tasks: Mapping[str, Task]) -> Local:
        """Have clients report how far their modalities are ahead of one another."""
        reporting = Reporting(local, tasks)
        return Decoupled(reporting, tasks) if self.gradients == "decoupled" else reporting

    def expects(self, held: Groups, parameters: Tensors, card: Card, active: frozenset[str]) -> Expects:
        """Expect that report, and gradients if these are compared."""
        found = expected_balance(card)
        return {**found, **expected_gradients(parameters, active)} if self.gradients == "decoupled" else found

    def watch(self, held: Groups, asked: Asked) -> Reducer[Groups]:
        """Remember updates and ratios of those who took part."""

        def tracks(client: ClientId) -> list[str]:
            active, owned = asked.cohort[client], asked.roster[client].modalities
            multi = len(active) == len(owned)
            single = asked.starting or self.refresh_single or not multi or len(owned) == 1
            names = [f"{SINGLE}{modality}" for modality in sorted(active)] if single else []
            return [MULTI, *names] if multi else names

        kinds = self._tracks(asked.parameters, modalities_of(asked.roster))
        places = {client: place for place, client in enumerate(sorted(asked.roster))}
        groups = dict.fromkeys(kinds, ENHANCEMENT_GRADIENT) | {MULTI: SUPERVISED_GRADIENT}
        decoupled = groups if self.gradients == "decoupled" else {}
        renewal = BalanceRenewal(Renewal(held, asked, kinds, tracks, decoupled), places)
        renewal.updates.scale = renewal.scale
        return renewal

    def choose(self, draft: Draft, memory: Groups, roster: Roster, clock: Clock) -> Conversation[tuple[Cohort, Groups]]:
        """Choose the cohort of a round, and each one's modalities."""
        check_size(self.clients, roster)
        ids = sorted(roster)
        samples = np.array([roster[client].examples for client in ids], dtype=np.float64)
        far = {modality: values.numpy() for modality, values in memory[BEHIND].items()}
        weak, imbalance = weak_modality(far, samples)
        multi, single = balanced_greedy(
            distances(memory, MULTI),
            distances(memory, f"{SINGLE}{weak}"),
            np.nan_to_num(far[weak], nan=1.0),
            self.clients,
            threshold=math.inf if self.threshold is None else self.threshold,
            candidates=self.candidates or enough(len(ids), self.clients),
            draw=drawing(clock),
            rule=self.rule,
            share_cover=self.share_cover,
        )
        alone = {ids[place] for place in single}
        chosen = sorted({ids[place] for place in multi} | alone)
        numbers = {
            "imbalance": imbalance,
            "uni_modal": float(len(alone)),
            **{f"weak.{modality}": float(modality == weak) for modality in sorted(far)},
        }
        clients = {client: {"behind": float(far[weak][ids.index(client)])} for client in chosen}
        yield from note(Note(numbers, {k: held for k, held in clients.items() if not math.isnan(held["behind"])}))
        return {
            client: frozenset({weak}) if client in alone else frozenset(roster[client].modalities) for client in chosen
        }, memory


def modalities_of(roster: Roster) -> list[str]:
    """Name all modalities that a client has, sorted."""
    return sorted({modality for card in roster.values() for modality in card.modalities})


def weak_modality(far: Mapping[str, NDArray[np.float64]], samples: NDArray[np.float64]) -> tuple[str, float]:
    """Return the weak modality, and the mean over clients of how far it is behind, weighted by their samples.

    ``far`` (clients,) by modality; NaN where a client lacks it, and then it does not count. Of two modalities the
    second (in alphabetical order) is the weak one if it is behind in the mean over **all** clients, those with one
    modality counting 1, else the first. Means of ratios are not symmetric: both may be above 1.
    """
    names = sorted(far)
    if len(names) == 2:
        first, second = (np.nan_to_num(far[name], nan=1.0) for name in names)
        behind_second = weighted_mean(second, samples)
        return (names[1], behind_second) if behind_second > 1 else (names[0], weighted_mean(first, samples))
    means = {}
    for name in names:
        owners = ~np.isnan(far[name])
        means[name] = weighted_mean(far[name][owners], samples[owners])
    weak = max(names, key=lambda name: means[name])
    return weak, means[weak]


def weighted_mean(values: NDArray[np.float64], samples: NDArray[np.float64]) -> float:
    """Return the mean weighted by samples; the plain mean if there are none, 1 for nothing."""
    if not len(values):
        return 1.0
    return float(np.average(values, weights=samples)) if samples.sum() > 0 else float(values.mean())


def bms(
    *,
    clients: PerRound = 10,
    threshold: Annotated[
        float | None,
        Field(ge=0, description="how far behind a client's weak modality must be to be trained alone; null: never"),
    ] = 1.5,
    candidates: Candidates = None,
    conflict_rule: Annotated[
        ConflictRule, Field(description="what is done where the two best candidates differ")
    ] = "hybrid",
    share_cover: Annotated[
        bool, Field(description="multi-modal participants also represent others in the weak modality")
    ] = True,
    compared: Annotated[Compared, Field(description="parameters whose updates are compared")] = "encoders",
    refresh_single: Annotated[
        bool, Field(description="multi-modal participations also renew the updates of single encoders")
    ] = True,
    start_epochs: StartEpochs = 1,
    gradients: Annotated[
        Gradients,
        Field(description="clients are compared by their updates, or by gradients of either loss, sent in addition"),
    ] = "update",
) -> Selector:
    """Balanced modality selection of BMSFed (Fan et al., ECCV 2024): clients, and with which modality each trains."""
    if gradients == "decoupled" and compared == "everything":
        raise UserError(
            "select.compared: everything, but with select.gradients: decoupled clients send gradients of encoders "
            "only; set one of the two otherwise"
        )
    return Balanced(
        clients, threshold, candidates, conflict_rule, share_cover, compared, refresh_single, start_epochs, gradients
    )
