"""From the reference of a model to its files: the Hub, folders, published checkpoints, plug-ins, and checks before a
network is built."""
