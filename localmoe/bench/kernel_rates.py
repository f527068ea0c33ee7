"""How fast weights of a type are multiplied with: small models of one type, through the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from localmoe.bench.small_models import Measured, Run, SmallModel, wide
from localmoe.bench.token_costs import TYPE, CostModels, beside
from localmoe.errors import LocalMoeError
from localmoe.planning.figures import Kernel, TokenCosts
from localmoe.settings import Progress

TYPES = ("Q4_K", "Q6_K", "Q8_0", "Q5_K", "Q3_K", "Q2_K", "IQ2_XXS", "IQ4_XS", "MXFP4", "BF16")
STAGE = "multiplying"
LAYER = "layers"
"""What failed where no type did."""


@dataclass(frozen=True)
class KernelRequest:
    """How large the models are, and how long each is measured."""

    experts: int = 48
    tokens: int = 32
    prompt_tokens: int = 256
    types: tuple[str, ...] = TYPES
    threads: int | None = None


@dataclass(frozen=True)
class Kernels:
    """What was found, and of which types nothing was, and why."""

    kernels: Mapping[str, Kernel]
    costs: TokenCosts
    """What was not measured is in the times of the kernels."""
    failed: Mapping[str, str]
    doubtful: tuple[str, ...] = ()
    """Types, or LAYER, whose samples lie far apart or cannot be told from noise."""


def measure_kernels(
    folder: Path, request: KernelRequest, run: Run, progress: Progress | None = None
) -> Kernels:
    """Write, run and remove a model for each type.

    A type whose process dies, whose engine refuses or for which there is no room is told of, and
    the others go on.
    """
    models: CostModels | None = None
    found: dict[str, Measured] = {}
    failed: dict[str, str] = {}
    try:
        models = CostModels.measure(folder, run, request.tokens, request.threads)
    except (LocalMoeError, OSError) as error:
        failed[LAYER] = _reason(error)
    for done, type_name in enumerate(request.types):
        if progress:
            progress(f"{STAGE} {type_name}", done, len(request.types))
        model = SmallModel(
            *(wide(request.experts), type_name, request.prompt_tokens),
            *(request.tokens, request.threads),
        )
        try:
            found[type_name] = model.measure(folder, run)
        except (LocalMoeError, OSError) as error:
            failed[type_name] = _reason(error)
    costs = models.costs(found.get(TYPE)) if models else TokenCosts()
    doubtful = [LAYER] if models and models.is_doubtful else []
    doubtful += [name for name, each in found.items() if _is_doubtful(each, costs)]
    kernels = {name: _kernel(each, costs) for name, each in found.items()}
    return Kernels(kernels, costs, failed, tuple(doubtful))


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _is_doubtful(measured: Measured, costs: TokenCosts) -> bool:
    """Whether samples differ, or products are less than half of a token: one of both is noise."""
    return measured.is_doubtful or beside(costs, measured) > measured.token_seconds / 2


def _kernel(measured: Measured, costs: TokenCosts) -> Kernel:
    """Take away what is not products; the routers of other types count as this one."""
    operations = sum(measured.work.operations(kind) for kind in measured.work.types)
    # Half of a token at least is its products: more is noise of the models measured here.
    products = max(measured.token_seconds - beside(costs, measured), measured.token_seconds / 2)
    return Kernel(
        measured.nbytes / products,
        operations / measured.prefill_seconds,
    )
