"""The importance matrix of a corpus, taken by the run that profiles it."""

from __future__ import annotations

from coe_native.errors import CoeError
from coe_native.llama.loaded_model import LoadedModel
from coe_native.model.imatrix_file import Imatrix, ImatrixEntry
from coe_native.routing.profile import RoutingProfile
from coe_native.routing.stats import MIN_TOKENS
from coe_native.surgery.quantize import imatrix_for


class InputWatcher:
    """Has a run of a profile sum the inputs of all matrices, and makes an importance matrix of them.

    If a mask is live, it is that of the specialist: only the kept experts, in the specialist's order.
    """

    def __init__(self, *, min_tokens: int = MIN_TOKENS) -> None:
        """Make a watcher for one run.

        Args:
            min_tokens: An expert that has seen fewer gets the mean of its layer; 0: none does.
        """
        self._min_tokens = min_tokens
        self._entries: dict[str, ImatrixEntry] = {}
        self._imatrix: Imatrix | None = None
        self._few: dict[str, tuple[int, ...]] = {}

    def take(self, model: LoadedModel) -> None:
        """Take the sums of a model that is being watched."""
        self._entries = model.input_sums()

    def describe(self, model: LoadedModel, profile: RoutingProfile) -> None:
        """Make the importance matrix, once the run has ended."""
        made = Imatrix(
            self._entries,
            datasets=tuple(corpus.name for corpus in profile.corpora),
            n_chunks=-(-profile.n_tokens // model.n_ctx),
            chunk_size=model.n_ctx,
        )
        if model.mask is not None:
            made = imatrix_for(made, model.moe, model.mask, model.moe.path)
        self._imatrix, self._few = made.with_means(self._min_tokens)

    @property
    def imatrix(self) -> Imatrix:
        """Return the importance matrix.

        Raises:
            CoeError: The run has not ended.
        """
        if self._imatrix is None:
            raise CoeError("the importance matrix can be read once the run has ended")
        return self._imatrix

    @property
    def n_few(self) -> int:
        """Return the number of experts, in all layers, that saw few tokens and got the mean of their layer."""
        layers = {name: name.split(".")[1] for name in self._few}
        return len({(layers[name], expert) for name, experts in self._few.items() for expert in experts})
