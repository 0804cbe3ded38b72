"""From the reference of a model to its files: the Hub, folders, published checkpoints, plug-ins, checks before a
network is built, and the errors of the libraries that read the files."""
