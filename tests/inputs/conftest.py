"""Property tests here check results, not speed: a busy machine must not fail them."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("inputs", deadline=None)
settings.load_profile("inputs")
