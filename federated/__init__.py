"""Federated fine-tuning with Flower: `Update` is in federated/update.py."""
