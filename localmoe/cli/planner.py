"""Puts a model, a machine and what is known of its routing together to one plan."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from localmoe.backends.llama.planned import plan_model
from localmoe.cli.options import figures_dir
from localmoe.cli.plan_target import Target
from localmoe.planning.advice import Advice, advise
from localmoe.planning.checkpoint_plan import plan_checkpoint
from localmoe.planning.graphics import with_graphics
from localmoe.planning.hit_rate import HitRate, default_hit_rate, recorded_hit_rate
from localmoe.planning.machines import Machine, machine_named, read_machines
from localmoe.planning.outlook import HitsAt, Situation
from localmoe.planning.planned_model import PlannedModel
from localmoe.planning.rates import Views
from localmoe.planning.this_machine import ThisMachine
from localmoe.planning.torch_rates import torch_views
from localmoe.settings import Settings
from localmoe.weights.checkpoint_kind import is_safetensors

THIS = "this"


@dataclass(frozen=True)
class Plan:
    """What is said of a model on a machine."""

    target: Target
    machine: str
    figures: str
    """Where the machine's figures come from."""
    situation: Situation
    graphics: Situation | None
    advice: tuple[Advice, ...]

    def as_json(self) -> dict[str, Any]:
        """Return all of it as plain values. Bytes, seconds, tokens per second."""
        now = self.situation
        return {
            "model": self.target.title,
            "model_figures": self.target.source,
            "machine": self.machine,
            "machine_figures": self.figures,
            "file_bytes": now.catalog.resident_nbytes + now.catalog.expert_nbytes,
            "tiers": {
                "memory_bytes": now.plan.total_bytes,
                "drive_bytes": now.catalog.expert_nbytes if now.plan.streams else 0,
            },
            "plan": asdict(now.plan),
            "hit_rate": asdict(now.hits),
            "bytes_read_per_token": now.read_bytes_per_token,
            "bytes_used_per_token": now.work.resident_nbytes + now.work.routed_nbytes,
            "decode_tokens_per_second": asdict(now.decode()),
            "prefill_tokens_per_second": asdict(now.prefill()),
            "with_a_gpu_backend": asdict(self.graphics.decode()) if self.graphics else None,
            "advice": [asdict(advice) for advice in self.advice],
        }


class Planner:
    """Plans models for one machine."""

    def __init__(
        self,
        machine: str,
        machine_file: Path | None,
        settings: Settings,
        trace: Path | None,
        model_folder: Path,
    ) -> None:
        """Find the machine; of this one, the drive of a folder counts. Raises SettingsError."""
        described = read_machines(machine_file) if machine_file else {}
        self._trace = trace
        self._machine: Machine | None = None
        if machine == THIS:
            here = ThisMachine.probe(figures_dir(), model_folder)
            self.title, self.figures = here.title, here.source
            self._views: Views = here.views()
            usable, self._cores = here.usable_bytes, float(here.cores)
        else:
            self._machine = machine_named(machine, described)
            self.title = self._machine.title
            self.figures = "figures of its class, measured on none"
            self._views = self._machine.views()
            usable, self._cores = self._machine.usable_bytes, self._machine.cores
        self.budget_bytes = settings.memory_bytes or usable
        self._settings = replace(settings, memory_bytes=self.budget_bytes)

    def plan(self, target: Target) -> Plan:
        """Return the plan. Raises BudgetError where it does not fit, and what reading it raises."""
        planned = self._planned(target.path)
        is_torch = planned.engine == "torch"
        situation = Situation(
            planned.catalog,
            planned.work,
            planned.slot_plan.plan,
            torch_views(self._views, self._cores) if is_torch else self._views,
            self._hits_at(planned),
            planned.engine,
        )
        graphics = with_graphics(situation, self._machine) if self._machine else None
        advice = advise(situation, target.smaller)
        return Plan(target, self.title, self.figures, situation, graphics, tuple(advice))

    def _planned(self, path: Path) -> PlannedModel:
        plan_it = plan_checkpoint if is_safetensors(path) else plan_model
        return plan_it(path, self._settings, self.budget_bytes)

    def _hits_at(self, planned: PlannedModel) -> HitsAt:
        experts = planned.slot_plan.plan.experts
        if self._trace is None:
            return lambda slots: default_hit_rate(slots / experts)
        from localmoe.lab.hits import TraceHits

        replayed = TraceHits(self._trace, planned.catalog)

        @cache
        def hits_at(slots: int) -> HitRate:
            return recorded_hit_rate(replayed.hit_rate(slots), replayed.n_tokens, replayed.name)

        return hits_at
