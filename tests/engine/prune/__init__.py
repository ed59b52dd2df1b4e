"""Tests of the prune step."""
