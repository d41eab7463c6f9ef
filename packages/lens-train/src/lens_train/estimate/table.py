"""Plans as people read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lens_train.estimate.plan import StagePlan

__all__ = ["print_plans"]


def print_plans(plans: Iterable[StagePlan], *, gpu: str, mfu: float) -> None:
    """Print a table for each stage."""
    console = Console(highlight=False, markup=False, emoji=False, width=None if Console().is_terminal else 160)
    for plan in plans:
        console.print(
            f"{plan.stage}: {plan.parameters:,} parameters, {plan.trained:,} trained; "
            f"a step is {plan.images:,.0f} images, {plan.image_tokens + plan.text_tokens:,.0f} tokens, "
            f"{plan.flops:.3g} FLOPs",
            soft_wrap=True,
        )
        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in ("GPUs", "state GB", "activations GB", "s/step", "GPU-hours", "days", ""):
            table.add_column(name, justify="right" if name else "left", no_wrap=True)
        for row in plan.rows:
            times = ["-"] * 3 if row.problem else [f"{row.seconds:.3g}", f"{row.gpu_hours:,.1f}", f"{row.days:,.2f}"]
            memory = [f"{row.state_bytes / 1e9:.1f}", f"{row.activation_bytes / 1e9:.1f}"]
            table.add_row(f"{row.gpus:,}", *memory, *times, row.problem)
        console.print(table, soft_wrap=True)
        for note in (f"{gpu} at {mfu:.0%} MFU", *plan.notes):
            console.print(f"assumed: {note}", soft_wrap=True)
