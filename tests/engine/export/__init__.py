"""Tests of worker/engine/export."""
