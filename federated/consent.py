"""What a node's owner insists on, whatever the server's run-config says: in the node's own node_config, which no server can change.

    deploy.py join ... --node-config 'partition-id=1 require-secure=true min-secure-clients=5 min-dp-noise=0.5'

require-secure      take part only in secure aggregation, also in evaluation: the loss of a model that the server chooses tells of the bars
min-secure-clients  with secure aggregation take part only if so many clients, this one included, are asked, listed and in the sum: by a
                    list of fewer nothing is sent, by fewer survivors no share is given. It says nothing of runs without secure
                    aggregation: add require-secure. The default of 2 is the protocol's own: the other of two learns this one's update.
min-dp-noise        this node adds at least so much noise itself in clipping norms: σ times its share (`Mechanism.noise_share`)

Without these a client believes the run-config, which protects from a server that is curious, not from one that cheats. What no owner can
count is how many clients are real: nobody signs the list of keys (`federated/secure/__init__.py`).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from federated.secure.settings import MIN_SURVIVORS
from kronos.errors import InputError

_PAIR = re.compile(r"""\S+?=('[^']*'|"[^"]*"|\S+)""")
_NAMES = ("require-secure", "min-secure-clients", "min-dp-noise")


@dataclass(frozen=True)
class Consent:
    """The three keys, read."""

    require_secure: bool
    min_secure_clients: int
    min_dp_noise: float

    @classmethod
    def of(cls, node_config: Mapping[str, object]) -> Consent:
        """Of a node's node_config. Raises InputError with every value that cannot be read, and names that are nearly ours: a misspelt key
        would protect nothing."""
        secure, noise = node_config.get("require-secure", False), node_config.get("min-dp-noise", 0.0)
        clients = node_config.get("min-secure-clients", MIN_SURVIVORS)
        known = isinstance(noise, int | float) and not isinstance(noise, bool) and 0 <= noise < math.inf
        nearly = {name: difflib.get_close_matches(name, _NAMES, 1, 0.8) for name in node_config if name not in _NAMES}
        wrong = [f"{name}: there is no such key; did you mean {near[0]}?" for name, near in nearly.items() if near]
        if not isinstance(secure, bool):
            wrong.append(f"require-secure is {secure!r}; expected true or false")
        if isinstance(clients, bool) or not isinstance(clients, int) or clients < MIN_SURVIVORS:
            wrong.append(f"min-secure-clients is {clients!r}; expected a whole number of at least {MIN_SURVIVORS}, such as 5")
        if not known:
            wrong.append(f"min-dp-noise is {noise!r}; expected a number of at least 0, such as 0.5")
        if wrong:
            raise InputError("node-config: " + "; ".join(wrong))
        return cls(secure, clients, float(noise))  # type: ignore[arg-type]

    @classmethod
    def parse(cls, text: str) -> Consent:
        """Of --node-config as it is typed. Raises InputError, before a node is started that would not work."""
        from click import ClickException
        from flwr.common.config import parse_config_args

        why = InputError(f"node-config: {text!r} cannot be read; expected such as 'partition-id=1 require-secure=true'")
        if not text.endswith(".toml") and _PAIR.sub("", text).strip():  # Flower drops what is no pair: 'require-secure = true' is nothing
            raise why
        try:
            return cls.of(parse_config_args([text]))
        except ClickException as error:
            raise why from error

    def refused(self, *, secure: bool, noise: float | None) -> str | None:
        """None if a request keeps to what the owner insists on, else why the node does not take part.

        secure: whether the request is a stage of secure aggregation, whose clients are counted there (`member.respond`). noise: what the
        client is to add itself, in clipping norms; None: the request wants no update.
        """
        if self.require_secure and not secure:
            return "this node takes part in secure aggregation only (require-secure), and the run has secure=false"
        if noise is not None and noise < self.min_dp_noise:
            least = f"{self.min_dp_noise:g} times the clipping norm (min-dp-noise)"
            return f"this node adds noise of at least {least}, and the run asks for {noise:.3g}"
        return None
