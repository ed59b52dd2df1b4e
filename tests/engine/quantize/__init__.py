"""Tests of worker/engine/quantize."""
