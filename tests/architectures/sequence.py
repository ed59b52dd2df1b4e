"""Transformers, vision transformers, recurrent networks, audio; several inputs and outputs."""

from __future__ import annotations

from tests.architectures.language import LANGUAGE
from tests.architectures.recurrent import RECURRENT
from tests.architectures.registry import Registry
from tests.architectures.speech import SPEECH
from tests.architectures.vision_transformers import VISION_TRANSFORMERS

SEQUENCE: Registry = {**VISION_TRANSFORMERS, **LANGUAGE, **SPEECH, **RECURRENT}
