"""What merging does to models, beyond their mean accuracy."""
