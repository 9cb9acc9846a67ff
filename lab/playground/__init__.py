"""How the playground's models are trained and exported."""
