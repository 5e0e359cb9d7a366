"""Models: architecture facts of known models, and where a model lies on this machine."""

from launcher.models.facts import ModelFacts, from_config, supported_architectures
from launcher.models.find import FoundModel, find_model, known_models

__all__ = ["FoundModel", "ModelFacts", "find_model", "from_config", "known_models", "supported_architectures"]
