"""Tests of weights that come with the name of their architecture."""
