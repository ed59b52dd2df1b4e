"""Scores: how much a weight, or all that goes with a channel, matters."""
