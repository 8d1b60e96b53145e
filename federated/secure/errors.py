"""What goes wrong in a secure round."""

from __future__ import annotations

from collections.abc import Iterable


class SecureAggregationHalted(RuntimeError):
    """A round ended without a sum: too few clients were left, too many refused, or the sum did not unmask.

    stage: where. survivors: node ids that were left. threshold: how many were needed. reason: one sentence.
    """

    def __init__(self, stage: str, survivors: Iterable[int], threshold: int, reason: str):
        self.stage, self.survivors, self.threshold, self.reason = stage, sorted(survivors), threshold, reason
        super().__init__(f"secure aggregation halted in stage {stage}: {reason} ({len(self.survivors)} clients left, {threshold} needed)")

    def __reduce__(self) -> tuple:
        return type(self), (self.stage, self.survivors, self.threshold, self.reason)


class Refused(Exception):
    """A client will not do what it was asked. kind: one of KINDS, all that the server is told. detail: for the client's own log only."""

    def __init__(self, kind: str, detail: str):
        assert kind in KINDS, kind
        self.kind, self.detail = kind, detail
        super().__init__(f"{kind}: {detail}")


KINDS = {  # kind: what it means, and the fix, in the words the server's user reads
    "protocol": "the server's request breaks the protocol",
    "few": "its owner takes part only with more clients (min-secure-clients in its node-config); ask more of them",
    "layout": "the update's arrays are not those that were sent; all clients must train the same model",
    "not-finite": "the update holds NaN or infinite values",
    "range": "the update leaves the clipping range; set a larger one, or a smaller learning rate",
    "weight": "the client has more examples than max_weight (or none); set it to the largest number of any client",
    "metric": "a metric is too large to encode",
}
RANGE_KINDS = {"range", "weight"}  # many of these mean that the settings are wrong, not the client
