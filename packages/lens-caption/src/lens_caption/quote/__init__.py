"""What a caption run will cost and how long it will take, before it costs anything.

quote_pipeline(pipeline, registry, pilot=50)
"""

from lens_caption.quote.estimate import LaneQuote, Quote, Range, Resize
from lens_caption.quote.stages import quote_pipeline

__all__ = ["LaneQuote", "Quote", "Range", "Resize", "quote_pipeline"]
