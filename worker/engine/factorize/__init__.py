"""Low rank: layers become products of thinner ones."""
