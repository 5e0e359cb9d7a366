"""swiftlaunch: one recipe, one command, a whole post-training chain on a cluster."""

__version__ = "0.1.0"
