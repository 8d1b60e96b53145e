"""The equations of Lim et al. 2019 (arXiv 1912.09363), one after the other, one window and one variable at a time: slow and literal.

It reads the weights of our model and uses nothing else of it. Numbers in brackets are the paper's equations. No dropout.
"""

import torch
from torch import Tensor

EPS = 1e-5


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def elu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.exp(x) - 1)


def softmax(x: Tensor) -> Tensor:
    return torch.exp(x) / torch.exp(x).sum()


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    mean = x.sum() / len(x)
    variance = ((x - mean) ** 2).sum() / len(x)
    return (x - mean) / torch.sqrt(variance + EPS) * gamma + beta


class Paper:
    """A model's weights by name, and the paper's functions of them."""

    def __init__(self, model):
        self.w = {name: value.detach() for name, value in model.state_dict().items()}
        self.sizes = model.sizes

    def linear(self, name: str, x: Tensor) -> Tensor:
        out = self.w[f"{name}.weight"] @ x
        return out + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else out

    def glu(self, name: str, gamma: Tensor) -> Tensor:  # (5)
        w, b = self.w[f"{name}.both.weight"], self.w[f"{name}.both.bias"]
        half = len(b) // 2
        return sigmoid(w[half:] @ gamma + b[half:]) * (w[:half] @ gamma + b[:half])

    def norm(self, name: str, x: Tensor) -> Tensor:
        return layer_norm(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def grn(self, name: str, a: Tensor, c: Tensor | None = None) -> Tensor:  # (2)-(4)
        inner = self.linear(f"{name}.first", a)
        if c is not None:
            inner = inner + self.w[f"{name}.context.weight"] @ c
        eta2 = elu(inner)
        eta1 = self.linear(f"{name}.second", eta2)
        skip = self.linear(f"{name}.skip", a) if f"{name}.skip.weight" in self.w else a
        return self.norm(f"{name}.norm", skip + self.glu(f"{name}.gate", eta1))

    def grn_of_real(self, name: str, j: int, xi: Tensor) -> Tensor:
        """(2)-(4) with the weights that our model keeps stacked, [F, in, out]."""
        part = {k[len(name) + 1 :]: v[j] for k, v in self.w.items() if k.startswith(f"{name}.")}
        eta2 = elu(xi @ part["first"] + part["first_bias"])
        eta1 = eta2 @ part["second"] + part["second_bias"]
        gated = sigmoid(eta1 @ part["gate"] + part["gate_bias"]) * (eta1 @ part["value"] + part["value_bias"])
        skip = xi @ part["skip"] + part["skip_bias"] if "skip" in part else xi
        return layer_norm(skip + gated, part["gamma"], part["beta"])

    def gated_skip(self, name: str, x: Tensor, skip: Tensor) -> Tensor:  # (17), (20), (22)
        return self.norm(f"{name}.norm", skip + self.glu(f"{name}.gate", x))

    def select(self, name: str, reals: list[Tensor], categories: list[Tensor], c: Tensor | None) -> tuple[Tensor, Tensor]:  # (6)-(8)
        weights = softmax(self.grn(f"{name}.weigh", torch.cat(reals + categories), c))
        transformed = [self.grn_of_real(f"{name}.bank", j, xi) for j, xi in enumerate(reals)]
        transformed += [self.grn(f"{name}.each.{j}", xi) for j, xi in enumerate(categories)]
        return sum(v * xi for v, xi in zip(weights, transformed, strict=True)), weights

    def lstm(self, name: str, rows: list[Tensor], h: list[Tensor], c: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        h, c = list(h), list(c)
        for layer in range(self.sizes.lstm_layers):
            w = {k: self.w[f"{name}.{k}_l{layer}"] for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
            out = []
            for x in rows:
                i, f, g, o = (w["weight_ih"] @ x + w["bias_ih"] + w["weight_hh"] @ h[layer] + w["bias_hh"]).chunk(4)
                c[layer] = sigmoid(f) * c[layer] + sigmoid(i) * torch.tanh(g)
                h[layer] = sigmoid(o) * torch.tanh(c[layer])
                out.append(h[layer])
            rows = out
        return rows, h, c

    def attend(
        self, name: str, theta: list[Tensor], first: int
    ) -> tuple[list[Tensor], list[Tensor]]:  # (13)-(16), queries from row `first` on
        heads, width = self.sizes.heads, self.sizes.hidden // self.sizes.heads
        w_q, w_k, w_v = (self.w[f"{name}.{part}.weight"] for part in ("query", "key", "value"))
        outs, seen = [], []
        for n in range(first, len(theta)):
            of_heads = []
            for h in range(heads):
                rows = slice(h * width, (h + 1) * width)
                query = w_q[rows] @ theta[n]
                scores = torch.stack([query @ (w_k[rows] @ theta[m]) / width**0.5 for m in range(n + 1)])  # causal: no row after n
                of_heads.append(softmax(scores))
            mean = sum(of_heads) / heads
            outs.append(self.w[f"{name}.out.weight"] @ sum(a * (w_v @ theta[m]) for m, a in enumerate(mean)))
            seen.append(torch.cat((mean, mean.new_zeros(len(theta) - n - 1))))
        return outs, seen

    def window(self, past: Tensor, known: Tensor, categorical: Tensor, static: Tensor) -> dict:
        """One window: past [E, Fp], known [E + P, Fk], categorical [E + P, Fc], static [Ns]."""
        s, w = self.sizes, self.w
        encoder = len(past)
        xi_static = [w[f"static_tables.{j}.weight"][code] for j, code in enumerate(static)]
        zeta, static_weights = self.select("static_selection", [], xi_static, None) if xi_static else (torch.zeros(s.hidden).to(past), None)
        c_s, c_e, c_h, c_c = (self.grn(f"contexts.{name}", zeta) for name in ("selection", "enrichment", "hidden", "cell"))
        selected, past_weights, known_weights = [], [], []
        for t in range(len(known)):
            real = torch.cat((past[t], known[t])) if t < encoder else known[t]
            offset = 0 if t < encoder else s.past
            xi = [x * w["embeddings.scale"][offset + j] + w["embeddings.shift"][offset + j] for j, x in enumerate(real)]
            of_codes = [w[f"embeddings.tables.{j}.weight"][code] for j, code in enumerate(categorical[t])]
            row, weights = self.select("past_selection" if t < encoder else "known_selection", xi, of_codes, c_s)
            selected.append(row)
            (past_weights if t < encoder else known_weights).append(weights)
        start = [c_h] * s.lstm_layers, [c_c] * s.lstm_layers
        encoded, h, c = self.lstm("encoder", selected[:encoder], *start)
        decoded, _, _ = self.lstm("decoder", selected[encoder:], h, c)
        phi = [self.gated_skip("after_lstm", a, b) for a, b in zip(encoded + decoded, selected, strict=True)]
        theta = [self.grn("enrichment", x, c_e) for x in phi]
        beta, attention = self.attend("attention", theta, encoder)
        delta = [self.gated_skip("after_attention", b, t) for b, t in zip(beta, theta[encoder:], strict=True)]
        psi = [self.grn("feed_forward", d) for d in delta]
        psi = [self.gated_skip("after_feed_forward", p, f) for p, f in zip(psi, phi[encoder:], strict=True)]
        logits = {name: self.linear(f"heads.{name}", psi[-1]) for name in s.outputs}
        return {
            "logits": logits,
            "attention": torch.stack(attention),
            "past_weights": torch.stack(past_weights),
            "known_weights": torch.stack(known_weights),
            "static_weights": static_weights,
        }
