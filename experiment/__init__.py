"""Runs: their folder, the space they merge in, their scores, and what the commands share."""
