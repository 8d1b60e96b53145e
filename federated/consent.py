"""What a node's owner insists on, whatever the server's run-config says: in the node's own node_config, which no server can change.

    deploy.py join ... --node-config 'partition-id=1 require-secure=true min-dp-noise=0.5'

require-secure   take part only in secure aggregation, also in evaluation: the loss of a model that the server chooses tells of the bars
min-dp-noise     this node adds at least so much noise itself in clipping norms: σ times its share (`Mechanism.noise_share`)

Without these a client believes the run-config, which protects from a server that is curious, not from one that cheats.
"""

from __future__ import annotations

from collections.abc import Mapping

from kronos.errors import InputError


def refused(node_config: Mapping[str, object], *, secure: bool, noise: float | None) -> str | None:
    """None if a request keeps to what the owner insists on, else why the node does not take part.

    secure: whether the request is a stage of secure aggregation. noise: what the client is to add itself, in clipping norms; None: the
    request wants no update. Raises InputError for a value in node_config that cannot be read.
    """
    require_secure, least = node_config.get("require-secure", False), node_config.get("min-dp-noise", 0.0)
    if not isinstance(require_secure, bool):
        raise InputError(f"node-config: require-secure is {require_secure!r}; expected true or false")
    if isinstance(least, bool) or not isinstance(least, int | float) or not least >= 0:
        raise InputError(f"node-config: min-dp-noise is {least!r}; expected a number of at least 0, such as 0.5")
    if require_secure and not secure:
        return "this node takes part in secure aggregation only (require-secure), and the run has secure=false"
    if noise is not None and noise < least:
        return f"this node adds noise of at least {least:g} times the clipping norm (min-dp-noise), and the run asks for {noise:.3g}"
    return None
