"""The Temporal Fusion Transformer: features, targets, fusion of periods, the network, its task and its commands."""
