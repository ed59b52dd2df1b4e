"""Tests of worker/engine/measure."""
