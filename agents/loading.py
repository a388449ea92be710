"""Finds agents by `module:name`, for command lines. Every way in which that can fail has its own sentence."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from .agent import Agent, AnyAgent
from .errors import AgentError


def load_agents(where: str) -> tuple[AnyAgent, ...]:
    """The agent, or the list or tuple of agents, at `package.module:name`. Raises AgentError.

    The working directory is searched too, as by `python -m`.
    """
    module_name, colon, name = where.partition(":")
    if not colon or not module_name or not name:
        raise AgentError(f"{where!r} does not name agents: write MODULE:NAME, for example my_agents.ledger:post")
    found = _attribute(_module(module_name, where), name, where)
    agents = tuple(found) if isinstance(found, list | tuple) else (found,)
    if not agents:
        raise AgentError(f"{where} is empty; put at least one agent into it")
    for place, candidate in enumerate(agents):
        if not isinstance(candidate, Agent):
            at = f"{where}[{place}]" if isinstance(found, list | tuple) else where
            raise AgentError(
                f"{at} is a {type(candidate).__name__}, not an agent: decorate the function with @agent(...)"
            )
    names = [one.name for one in agents]
    if len(set(names)) != len(names):
        twice = next(one for one in names if names.count(one) > 1)
        raise AgentError(f"{where} holds two agents named {twice!r}; give each its own name")
    return agents


def _module(name: str, where: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise AgentError(
                f"{where}: there is no module {error.name!r}; check the spelling, and that it can be imported from {here}"
            ) from error
        raise AgentError(
            f"{where}: importing {name} needs the module {error.name!r}, which is not installed"
        ) from error
    except Exception as error:
        raise AgentError(f"{where}: importing {name} failed with {type(error).__name__}: {error}") from error


def _attribute(module: Any, name: str, where: str) -> Any:
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            agents = sorted(key for key, value in vars(module).items() if isinstance(value, Agent))
            known = f"; it has the agents {', '.join(agents)}" if agents else "; it declares no agents"
            raise AgentError(f"{where}: {module.__name__} has no {name!r}{known}")
        found = getattr(found, part)
    return found
