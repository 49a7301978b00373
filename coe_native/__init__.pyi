"""The public names of coe_native, and where each is defined. ``__init__.py`` reads this list."""

from .corpus.bundles import Shard as Shard
from .corpus.corpora import Corpus as Corpus
from .corpus.read import read_corpus as read_corpus
from .errors import CoeError as CoeError
from .errors import InputError as InputError
from .evaluation.perplexity import Evaluation as Evaluation
from .evaluation.perplexity import evaluate as evaluate
from .evaluation.perplexity import evaluate_masks as evaluate_masks
from .evaluation.sweep import Sweep as Sweep
from .evaluation.sweep import SweepPoint as SweepPoint
from .evaluation.sweep import sweep as sweep
from .live.attach import Capture as Capture
from .live.attach import attach as attach
from .llama.loaded_model import Model as Model
from .llama.memory import Memory as Memory
from .llama.options import ModelOptions as ModelOptions
from .llama.options import Placement as Placement
from .masks.build import build_mask as build_mask
from .masks.expert_mask import ExpertMask as ExpertMask
from .masks.options import MaskOptions as MaskOptions
from .masks.options import PassOptions as PassOptions
from .masks.overlap import Overlap as Overlap
from .masks.overlap import compare as compare
from .masks.stability import Agreement as Agreement
from .masks.stability import Stability as Stability
from .model.header import MoeModel as MoeModel
from .profiling.run import profile as profile
from .profiling.run import profile_corpora as profile_corpora
from .routing.output_norms import OutputNorms as OutputNorms
from .routing.profile import RoutingProfile as RoutingProfile
from .routing.profile import merge as merge
from .routing.scores import METHODS as METHODS
from .routing.scores import score as score
from .routing.stats import STATS as STATS
from .surgery.fit import Fit as Fit
from .surgery.fit import fit as fit
from .surgery.fit import largest_keep_that_fits as largest_keep_that_fits
from .surgery.fit import memory_of as memory_of
from .surgery.in_place import zero_in_place as zero_in_place
from .surgery.verify import Check as Check
from .surgery.verify import verify as verify
from .surgery.write import prune as prune
from .surgery.write import zero as zero

__version__: str
