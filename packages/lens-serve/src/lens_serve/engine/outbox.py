"""What an engine tells of its jobs: steps, previews, pictures and failures."""

from __future__ import annotations

import hashlib
import logging
import time
from typing import TYPE_CHECKING

from lens_serve.engine.messages import Drawn, Failed, Preview, Progress

if TYPE_CHECKING:
    from lens_serve.engine.jobs import Job
    from lens_serve.engine.messages import Reason
    from lens_serve.engine.wire import Channel, Slots

__all__ = ["Outbox"]

log = logging.getLogger(__name__)


class Outbox:
    """Sends what happened to jobs.

    Args:
        channel: to the API process.
        slots: where it wants the pictures.

    Attributes:
        taken: slots whose pictures the API process has not copied yet.
    """

    def __init__(self, channel: Channel, slots: Slots):
        self.taken: set[int] = set()
        self._channel, self._slots = channel, slots

    @property
    def most_bytes(self) -> int:
        """Of a picture."""
        return self._slots.size

    def stepped(self, job: Job) -> None:
        """A step was taken; what the picture looks like goes along when that is due."""
        drawing = job.drawing
        self._channel.send(Progress(id=job.draw.id, step=drawing.taken, steps=drawing.steps))
        if drawing.done or not job.moments.due(float(drawing.time)):
            return
        try:
            shown_HW3 = job.model.preview.show(drawing.promised_NC, drawing.grid)
        except Exception as error:  # out of memory perhaps; the picture does not need it
            log.warning("job %s: a preview is left out: %s", job.draw.id, type(error).__name__)
            return
        height, width = shown_HW3.shape[:2]
        self._channel.send(
            Preview(id=job.draw.id, number=job.shown, height=height, width=width, pixels=shown_HW3.tobytes())
        )
        job.shown += 1

    def hand_over(self, job: Job) -> bool:
        """Put a picture into a slot and say so; False if none is free."""
        slot = next((slot for slot in range(self._slots.count) if slot not in self.taken), None)
        if slot is None:
            return False
        self.taken.add(slot)
        self._slots.write(slot, job.picture_HW3)
        latents = job.drawing.tokens_NC.float().cpu().numpy().astype("<f4").tobytes()
        self._channel.send(
            Drawn(
                id=job.draw.id,
                slot=slot,
                height=job.draw.height,
                width=job.draw.width,
                latent_sha256=hashlib.sha256(latents).hexdigest(),
                pixel_sha256=hashlib.sha256(job.picture_HW3.tobytes()).hexdigest(),
                seconds={"waited": time.monotonic() - job.draw.arrived - sum(job.seconds.values()), **job.seconds},
                features={**job.model.features, "text_tokens": str(job.entry.sequences[0].text_tokens)},
            )
        )
        return True

    def failed(self, id: str, reason: Reason, message: str) -> None:
        """A job will not be done."""
        self._channel.send(Failed(id=id, reason=reason, message=message))
