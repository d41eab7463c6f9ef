"""The serve stage: a pipeline that ends in a server."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_core.errors import Stopped
from lens_core.storage import urls
from lens_serve.config import ServedModel, ServerBlocks, ServeSettings
from lens_serve.launch import Serving

if TYPE_CHECKING:
    from lens_core.pipeline.context import StageContext
    from lens_serve.stages.serve.config import ServeStageConfig

__all__ = ["run"]

SERVICE = "service.json"


def run(config: ServeStageConfig, context: StageContext) -> dict[str, Any]:
    """Serve until the run is stopped, or for the minutes that are set.

    Raises:
        Stopped: the run was asked to stop; run again, it serves again.
    """
    settings = ServeSettings(
        # Paths of the settings start where the pipeline is; those of artefacts, here.
        models=[ServedModel(name=one.name, folder=urls.resolve(one.url, str(Path.cwd()))) for one in context.inputs],
        **{name: getattr(config, name) for name in ServerBlocks.model_fields},
    ).at(context.base)
    began = time.monotonic()

    def over() -> bool:
        return config.minutes is not None and time.monotonic() - began >= 60 * config.minutes

    context.progress.start(None, "images")
    serving = Serving(settings, context.registry, say=context.progress.note)
    served = serving.run(until=lambda: context.should_stop() or over(), told=context.progress.update)
    if not over():
        raise Stopped(f"served {served} images; the same command serves again")
    stats = {"images": served, "minutes": config.minutes}
    context.output.write_json(SERVICE, {"format_version": 1, **stats})
    return stats
