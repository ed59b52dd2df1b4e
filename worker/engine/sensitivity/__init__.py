"""How much each group of channels matters."""
