"""Projector evolution: gradient steps on the projector beneath the best policies so far, kept only if they generalise.

After SlimLLaVA: the projector is small and joins the towers, so that it can make up for what pruning did to both. Its
masks stay as they are; only weights inside them, and biases, move.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ..config import SearchConfig
from ..policy import Policy
from .cost import Ledger
from .fitness import ModelJudge
from .journal import Journal

Parameters = dict[str, Tensor]
"""Of the projector by name; weights as they are beneath the masks."""


@dataclass
class ProjectorEvolution:
    """train: where the steps are taken. held_out: what must fall for them to be kept, J on other samples.

    weights: the parameters as last accepted; empty while they are the checkpoint's. tried: the policies that steps were
    taken beneath, each time. Steps that do not help cost as much as those that do: after each such try twice as many
    calls pass without one, 1, 2, 4 and so on, until one helps.
    """

    train: ModelJudge
    held_out: Callable[[Sequence[Policy]], list[float]]
    config: SearchConfig
    journal: Journal
    ledger: Ledger
    weights: Parameters = field(default_factory=dict)
    tried: list[object] = field(default_factory=list)
    passes: int = 0
    next_passes: int = 1

    def __post_init__(self) -> None:
        # In float32, whatever the model is held in: steps that are too small for its type have to add up.
        self._checkpoint = {
            name: parameter.detach().to(torch.float32, copy=True) for name, parameter in self._own().items()
        }
        self._now: Mapping[str, Tensor] = self._checkpoint

    def put_back(self) -> None:
        """The checkpoint's own parameters."""
        self.install(self._checkpoint, version=0)

    def refine(self, policies: Sequence[Policy]) -> bool:
        """Take the steps beneath `policies`, all together; True when the projector changed."""
        if self.passes:
            self.passes -= 1
            return False
        of = (self.train.version, [policy.key() for policy in policies])
        # Taken again, they would lead to where they led.
        if not self.config.projector_steps or of in self.tried or not self._linears():
            return False
        self.tried.append(of)
        old, old_version, version = self.parameters(), self.train.version, len(self.tried)
        before = sum(self.held_out(policies))
        stepped = self.journal.tensors(f"projector-{version}", partial(self._stepped, policies, version))
        self._account(policies, version)
        self.install(stepped, version)
        if sum(self.held_out(policies)) < before:
            self.weights, self.next_passes = stepped, 1
            return True
        self.install(old, old_version)
        self.passes, self.next_passes = self.next_passes, 2 * self.next_passes
        return False

    def parameters(self) -> Parameters:
        """A copy of what the projector has now."""
        return {name: tensor.clone() for name, tensor in self._now.items()}

    def install(self, parameters: Mapping[str, Tensor], version: int) -> None:
        """Make these the projector's, beneath whatever policy is applied."""
        self._put(parameters)
        self._now = parameters
        self.train.pruned.version = version

    def _put(self, parameters: Mapping[str, Tensor]) -> None:
        for name, linear in self._linears():
            self.train.pruned.replace_dense(name, parameters[f"{name}.weight"])
            if linear.bias is not None:
                with torch.no_grad():
                    linear.bias.copy_(parameters[f"{name}.bias"])

    def _stepped(self, policies: Sequence[Policy], version: int) -> Parameters:
        """The parameters after steps on the mean loss of the policies."""
        began = time.perf_counter()
        moving = self.parameters()
        optimizer = torch.optim.Adam(moving.values(), lr=self.config.projector_learning_rate)
        with self.train.pruned.model.frozen(but=self._own().values()):
            for part in self._parts():
                gradients = {name: torch.zeros_like(parameter) for name, parameter in moving.items()}
                for policy in policies:
                    self.train.pruned.apply(policy)
                    self._put(moving)
                    for name, gradient in self._gradients(part):
                        gradients[name] += gradient / len(policies)
                for name, parameter in moving.items():
                    parameter.grad = gradients[name]
                optimizer.step()
        self.journal.note(f"seconds of projector {version}", time.perf_counter() - began)
        return {name: parameter.detach() for name, parameter in moving.items()}

    def _gradients(self, part: int) -> Iterable[tuple[str, Tensor]]:
        """Of the loss at the policy that is applied. What its masks hide has none; rounding to integers passes them."""
        own, loss = self._own(), self.train.proxy_loss(part)
        if not loss.requires_grad:
            return  # samples without a picture say nothing of the projector
        # Nor does anything of what the last layers of a Q-Former make of text.
        gradients = torch.autograd.grad(loss, list(own.values()), allow_unused=True, materialize_grads=True)
        for name, gradient in zip(own, gradients, strict=True):
            layer, _, kind = name.rpartition(".")
            yield name, gradient * self.train.pruned.mask_now(layer) if kind == "weight" else gradient

    def _parts(self) -> list[int]:
        """One for each step: in turn, from the last on, because the first are small."""
        count = len(self.train.batches)
        return [count - 1 - step % count for step in range(self.config.projector_steps)]

    def _account(self, policies: Sequence[Policy], version: int) -> None:
        tokens = len(policies) * sum(self.train.tokens[part] for part in self._parts())
        self.ledger.add("projector steps", 0, tokens, self.journal.recall(f"seconds of projector {version}") or 0.0)

    def _own(self) -> dict[str, torch.nn.Parameter]:
        """What the model multiplies with now, in its own type: weights are masked."""
        return {
            f"{name}.{kind}": parameter
            for name, linear in self._linears()
            for kind, parameter in linear.named_parameters()
        }

    def _linears(self) -> list[tuple[str, torch.nn.Linear]]:
        return self.train.pruned.model.projector_linears()
