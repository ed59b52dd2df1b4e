"""Tests of worker/engine/data."""
