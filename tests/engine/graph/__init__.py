"""Tests of the channel analysis, the cut, the mask check and the counting."""
