"""Secure aggregation: the server learns the weighted mean of the clients' updates and no client's own.

The protocol is that of Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017), with the sparse
graph of neighbours of Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead" (CCS 2020, SecAgg+), as an option.
Six stages, in each of which clients may be lost:
    setup         each client sends two fresh public keys, one for masks (P-256) and one for what it seals and confirms (X25519)
    share_keys    each sends its neighbours sealed Shamir shares of its self-mask's seed and of its masks' private key, and proofs of both
    check_shares  each opens its neighbours' shares, holds them against the proofs and tells whose are false; it parts from these
    masked_input  each trains, then sends words + self-mask + masks shared with the neighbours that got this far, modulo 2^32
    agree         each confirms to its neighbours, under keys that the server does not have, which model and which survivors it was told of
    unmask        each that sees a threshold of clients told the same gives, for every neighbour, either the share of the seed (it
                  survived) or of the private key (it did not)
The masks of survivors cancel in the sum; those of lost clients are recomputed from the shares, each held against its proof again. A
client's vector stays under its self-mask, even when it arrives after the client was given up.

What it protects, from whom: a server that follows the protocol and remembers everything (honest but curious), and colluding clients fewer
than the threshold, learn the sum over the survivors and nothing more of the others. Every client also refuses what a server that departs
from the protocol could ask: both kinds of share for one peer, shares below the threshold, a second unmasking, a stage out of order, other
people's keys under its name. A server that tells different clients different things gets no sum of fewer clients than the threshold, as
long as fewer than 2·threshold − holders clients collude with it, for the threshold is more than half of those who hold shares of one
client (tests/test_secure_liar.py has these attacks):
  - Other survivors: no shares before a threshold has confirmed the same. That is the stage `agree`, the consistency check of Bonawitz et
    al.; without it such a server read the sum of 5 of 40 clients at a threshold of 21.
  - Other models, to isolate one client (Pasquini et al., CCS 2022), or other terms: masks hang on both, so that those of clients who were
    shown different ones do not cancel. A threshold that confirms is not enough here: the one who was shown something else is in the sum.
  - Other lists of keys, or other terms: shares hang on both and do not open. Not so where masks are shared with a few neighbours only,
    who have lists of their own; a client takes no part in that unless it is told to (`member.respond`), and the federation never asks it.

What it does not protect:
  - The list of public keys comes through the server and nobody signs it. A server that puts in keys of its own (a man in the middle, or
    invented clients) reads everything. That needs a public-key infrastructure which the clients trust and the server does not run.
  - The sum itself: with a target's update alone in it, or with all the others colluding, the sum is the update; so are two sums over sets
    that differ by one client. Differential privacy is for that (federated/privacy.py).
  - The model that the server sends: one made on purpose, the same for all, can make an update tell more than an honest one does.
  - Wrong words from a client: an honest one keeps to the clipping range, and nothing makes a liar do so. It can move each value of the mean
    as far as all clients together may, or send noise, which halts the round where head words no longer add up; who it was stays hidden.
  - In clear: who took part, who was lost and when, the names and shapes of arrays and metrics, the sum of the weights, the run's settings.

What a client that lies about shares can do (tests/test_secure_shares.py): be lost. False shares that it deals show in check_shares, before
there is a mask; a key that is not the published one shows in its proof; false shares that it hands back in unmask do not count, and the log
names it. One thing nobody can tell: who lies where one client calls another's shares false. The two part, and no round halts for it as long
as each has a threshold of holders besides itself; where that cannot be, one of the two is lost, perhaps the honest one (`disputes.py`).

`settings.py` what the user sets, `terms.py` what a round's server tells, `keys.py` `masks.py` `shamir.py` `proofs.py` the cryptography,
`encoding.py` numbers to words, `member.py` the client, `cohort.py` `disputes.py` the server; these take numpy and bytes only. `client.py`
and `server.py` speak Flower.
"""
