"""Tests of worker/engine/train."""
