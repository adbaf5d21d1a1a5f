"""The part of a run in which its agent searches and learns."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from pathlib import Path

from agents.callbacks import PolicyCurves
from agents.curves import SearchCurves
from agents.policy import SelectionNetwork
from agents.search.dyna_ppo import DynaPPO
from agents.search.ppo import learn
from agents.session import Session
from agents.settings import DynaPPOSettings, PPOSettings
from agents.source_policy import SourcePolicy


def learn_by_searching(session: Session, tensorboard: Path, source: SourcePolicy | None = None) -> SelectionNetwork:
    """Spends the run's budget, and returns the policy that came out of it.

    Args:
        session: Of the run.
        tensorboard: Folder for the curves; this is its only writer.
        source: What was learned on other tasks; None to start from scratch. Of ``dyna_ppo`` only.
    """
    settings = session.settings
    agent = settings.agent
    if isinstance(agent, PPOSettings):
        with closing(session.environment(agent.rollout)) as env:
            return learn(
                env,
                agent,
                budget=settings.budget.evaluations,
                seed=settings.seed,
                tensorboard=tensorboard,
                callback=PolicyCurves(session),
            )
    with SearchCurves(session, tensorboard) as curves:
        searcher = dataclasses.replace(dyna_ppo(agent, source), logger=curves.logger)
        network = searcher.learn(session.problem(), settings.seed, curves.show)
        curves.end(network)
    return network


def dyna_ppo(agent: DynaPPOSettings, source: SourcePolicy | None) -> DynaPPO:
    """The searcher that these settings describe."""
    return DynaPPO(
        source=source,
        rounds=dataclasses.replace(agent.practice, updates=agent.round_updates),
        final=agent.practice,
        draws=agent.draws,
        proposals=agent.proposals,
    )
