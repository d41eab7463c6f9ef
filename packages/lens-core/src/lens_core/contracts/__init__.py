"""What each kind of component must be able to do: protocols, and the small frozen types they exchange.

Everything here is light. The kinds that speak torch are described in `lens_core.contracts.diffusion`.
"""

from lens_core.contracts.captioners import Captioner, CaptionOutcome, ImageItem, Status
from lens_core.contracts.datasets import Candidate, Dataset, Filter, ImageInfo, ImageRecord, Verdict
from lens_core.contracts.evaluators import EvalTask, Evaluator, verdicts
from lens_core.contracts.rewriters import Rewriter
from lens_core.contracts.safety_checkers import SafetyChecker

__all__ = [
    "Candidate",
    "CaptionOutcome",
    "Captioner",
    "Dataset",
    "EvalTask",
    "Evaluator",
    "Filter",
    "ImageInfo",
    "ImageItem",
    "ImageRecord",
    "Rewriter",
    "SafetyChecker",
    "Status",
    "Verdict",
    "verdicts",
]
