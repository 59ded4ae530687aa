"""FedDAT's loss: a shared adapter learns from a teacher of two, and the personal one of these learns back from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from polyfed.data.samples import Batch
from polyfed.data.schema import IGNORED
from polyfed.method.protocol import Groups, Model
from polyfed.model.adapter_names import LORA
from polyfed.model.adapter_weights import DUAL_TEACHER, in_both_ways
from polyfed.model.losses import Logged, total_loss


@dataclass(frozen=True)
class MutualDistillation:
    """The sum of the losses of FedDAT's two steps (Chen et al., AAAI 2024, as its code has them).

    L₁ = (task(z₁) + KD(z₁, z_T)) / 2 and L₀ = (task(z₀) + KD(z₀, z₁)) / 2, where z₁ is the model with the shared
    adapter alone, z₀ and z_T that with the personal and the frozen one, half of each. KD's second argument has no
    gradient, and z_T is z₀: neither adapter of it moves before the second step. So the shared adapter gets the gradient
    of L₁ and the personal one that of L₀, as in two steps; what both use, a connector, gets the sum of both, which is
    our choice: the original has no such part.

    Logged: the tasks' losses of z₀ (the model that the client uses), and ``shared`` L₁ and ``personal`` L₀.
    """

    temperature: float = 3.0

    def __call__(self, model: Model, batch: Batch, extra: Groups) -> tuple[Tensor, Logged]:
        """Return the loss () and its parts."""
        # Both in one call: gradient checkpointing computes a call anew with the weights of the last one.
        outputs = model(in_both_ways(batch, {LORA: 1.0}, DUAL_TEACHER))
        halves = {task: logits.chunk(2) for task, logits in outputs.predictions.items()}
        shared, personal = ({task: half[place] for task, half in halves.items()} for place in (0, 1))
        first, _ = total_loss(model.tasks, outputs._replace(predictions=shared), batch)
        second, logged = total_loss(model.tasks, outputs._replace(predictions=personal), batch)
        first = (first + self._taught(shared, personal, batch)) / 2
        second = (second + self._taught(personal, shared, batch)) / 2
        return first + second, {**logged, "shared": first.detach(), "personal": second.detach()}

    def _taught(self, student: dict[str, Tensor], teacher: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return the sum of the tasks' distillation losses (); the teacher has no gradient."""
        losses = [
            distillation(logits, teacher[task].detach(), answers(batch, task, logits.shape[1]), self.temperature)
            for task, logits in student.items()
        ]
        return torch.stack(losses).sum() if losses else torch.zeros(())


def answers(batch: Batch, task: str, length: int) -> Tensor:
    """Return where logits (batch, length, vocabulary) predict a token of an answer: (batch, length) bool."""
    wanted = batch.targets[task][:, 1:length] != IGNORED
    return functional.pad(wanted & batch.labelled[task].unsqueeze(1), (0, 1))


def distillation(student: Tensor, teacher: Tensor, where: Tensor, temperature: float) -> Tensor:
    """Return t² KL(softmax(teacher / t) ‖ softmax(student / t)), the mean over the positions ``where`` ().

    Logits (batch, length, vocabulary), where (batch, length) bool. Zero, with a graph, if there are none.
    """
    one, other = (torch.log_softmax(logits[where].float() / temperature, -1) for logits in (student, teacher))
    apart = functional.kl_div(one, other, reduction="sum", log_target=True)
    return temperature**2 * apart / where.sum().clamp(min=1)
