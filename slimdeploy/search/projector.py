"""Projector evolution: gradient steps on the projector beneath the best policy so far, kept only if they generalise.

After SlimLLaVA: the projector is small and joins the towers, so that it can make up for what pruning did to both. Its
masks stay as they are; only weights inside them, and biases, move.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config import SearchConfig
from ..policy import Policy
from .evolution import Fitness
from .fitness import Judge, proxy_loss
from .journal import Journal


@dataclass
class ProjectorEvolution:
    """train: where the steps are taken. held_out: what must fall for them to be kept, J on other samples.

    weights: the projector's parameters by name, as last accepted, unpruned; empty while they are the checkpoint's.
    version: how often they were. tried: how often `refine` was asked.
    """

    train: Judge
    held_out: Fitness
    config: SearchConfig
    journal: Journal
    weights: dict[str, Tensor] = field(default_factory=dict)
    version: int = 0
    tried: int = 0

    def refine(self, policy: Policy) -> bool:
        """Take the steps beneath `policy`; True when the projector changed."""
        if not self.config.projector_steps or not self._linears():
            return False
        self.tried += 1
        better = self.journal.tensors(f"projector-{self.tried}", lambda: self._better(policy))
        if not better:
            return False
        self.install(better)
        self.weights, self.version = better, self.version + 1
        return True

    def _better(self, policy: Policy) -> dict[str, Tensor]:
        """The parameters after the steps; none, and the old ones installed again, where they do not generalise."""
        before = self.held_out(policy)
        old = self.parameters()
        self._descend(policy)
        new = self.parameters()
        self.install(new)
        if self.held_out(policy) < before:
            return new
        self.install(old)
        return {}

    def install(self, parameters: Mapping[str, Tensor]) -> None:
        """Make these unpruned parameters the projector's, beneath whatever policy is applied."""
        for name, linear in self._linears():
            self.train.pruned.replace_dense(name, parameters[f"{name}.weight"])
            if linear.bias is not None:
                with torch.no_grad():
                    linear.bias.copy_(parameters[f"{name}.bias"])

    def _descend(self, policy: Policy) -> None:
        pruned = self.train.pruned
        pruned.apply(policy)
        moving = [parameter for _, linear in self._linears() for parameter in linear.parameters()]
        optimizer = torch.optim.Adam(moving, lr=self.config.projector_learning_rate)
        for step in range(self.config.projector_steps):
            part = self.train.parts[step % len(self.train.parts)]
            loss = proxy_loss(pruned.model, part.batch, part.dense)
            for parameter, gradient in zip(moving, torch.autograd.grad(loss, moving), strict=True):
                parameter.grad = gradient
            for name, linear in self._linears():
                assert linear.weight.grad is not None
                linear.weight.grad *= pruned.mask_now(name)
            optimizer.step()
        optimizer.zero_grad()

    def parameters(self) -> dict[str, Tensor]:
        """The projector's parameters as the module has them now, with what its masks hide put back."""
        parameters = {}
        for name, linear in self._linears():
            hidden = self.train.pruned.dense(name)
            weight = linear.weight.detach()
            parameters[f"{name}.weight"] = torch.where(self.train.pruned.mask_now(name), weight, hidden)
            if linear.bias is not None:
                parameters[f"{name}.bias"] = linear.bias.detach().clone()
        return parameters

    def _linears(self) -> list[tuple[str, torch.nn.Linear]]:
        return self.train.pruned.model.projector_linears()
